"""A fleet with mutual TLS whose lines delay, cut, crawl and fall silent; revoked and renewed keys.

Every line counts what it did, and a test ends by looking at the counts: a run over lines on which
nothing happened fails.
"""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_fleet import RUN_S, Lines, bad_fleet, over_lines

from acme_fleet.config.fleet import Fleet
from acme_fleet.network.hosts import certificates, keygen
from acme_fleet.network.hosts.site import Site
from acme_fleet.pipeline import customize
from acme_research.frame.loopback import Hosts, finish, wait_for


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return bad_fleet()


@pytest.fixture(scope="module")
def whole(fleet: Fleet) -> Iterator[tuple[Hosts, Lines]]:
    with over_lines(fleet, grace_s=60) as found:
        yield found


@pytest.fixture
def hosts(whole: tuple[Hosts, Lines]) -> Hosts:
    return whole[0]


@pytest.fixture
def lines(whole: tuple[Hosts, Lines]) -> Lines:
    return whole[1]


def _shown(hosts: Hosts, server: str) -> str:
    """The certificate that a server shows now."""
    site = Site.from_yaml(hosts.config(server))
    return ssl.get_server_certificate(("127.0.0.1", site.port))


def _renew(hosts: Hosts, server: str) -> None:
    """A new certificate and key of a server, as docs/network.md says."""
    for name in (certificates.SERVER, certificates.SERVER_KEY):
        (hosts.keys(server) / name).unlink()
    keygen.init_keys(hosts.folder / "keys", [f"{server}=127.0.0.1"], None)


def test_the_same_models_over_bad_lines_while_a_servers_certificate_is_renewed(
    fleet: Fleet, hosts: Hosts, lines: Lines, tmp_path: Path
):
    customize(fleet, tmp_path / "run")
    lines["north"].delay_s = 0.1
    lines["cam-1"].delay_s = 0.2
    lines["cam-2"].cut_after, lines["cam-2"].cut_share = 20_000, 0.3
    lines["cam-3"].bytes_up = lines["cam-3"].bytes_down = 60_000
    for name in ("cam-1", "cam-2", "cam-3"):
        lines[name].cut_all()  # what is open was drawn before
    out, before = "bad", _shown(hosts, "north")
    run = hosts.run(out=out)
    wait_for(lambda: hosts.sent(out, "north", "cam-1", "HeaderAssignment") > 0, RUN_S)
    _renew(hosts, "north")
    wait_for(lambda: _shown(hosts, "north") != before, 60)
    assert run.poll() is None, "the run was over before the certificate was new"
    wait_for(lambda: hosts.sent(out, "north", "cam-1", "RoundStart") > 0, RUN_S)
    lines["cam-1"].silent = True
    wait_for(lambda: lines["cam-1"].held_up > 0, 60)
    lines["cam-1"].cut_all()  # what was held up is lost
    lines["cam-1"].silent = False
    lines["north"].cut_all()
    summary = finish(run, hosts, out, RUN_S)
    assert all(cluster.lost == {} for cluster in summary.clusters)
    for device in fleet.devices:
        expected = (tmp_path / "run" / "devices" / device.name / "model.safetensors").read_bytes()
        assert hosts.model(out, device.name) == expected, device.name
    assert lines["cam-2"].cut > 1
    assert all(line.passed > 2**14 for line in lines.values())


def test_a_revoked_device_is_refused_and_a_silent_one_is_left_out(
    fleet: Fleet, hosts: Hosts, lines: Lines
):
    """The last test: nobody lets the revoked device in again."""
    for line in lines.values():
        line.mend()
    out = "losses"
    run = hosts.run(out=out)
    wait_for(lambda: hosts.sent(out, "north", "cam-1", "RoundStart") > 0, RUN_S)
    lines["cam-2"].silent = True
    for folder in (hosts.folder / "keys", hosts.keys("north")):  # the authority, and its server
        keygen.revoke(folder, "cam-3")
    shutil.copy(hosts.folder / "keys" / certificates.REVOKED, hosts.keys("north"))
    summary = finish(run, hosts, out, RUN_S)
    (north,) = summary.clusters
    assert set(north.lost) == {"cam-2", "cam-3"}
    assert all("out of reach" in reason for reason in north.lost.values())
    assert [device.name for device in summary.devices] == ["cam-1"]
    assert hosts.model(out, "cam-1")
    page = (hosts.folder / out / "report.html").read_text()
    assert "cam-2" in page
    assert "cam-3" in page
    # It tries again, and is refused by the proxy before the SuperLink hears of it.
    wait_for(lambda: "400 Bad Request" in hosts.log("cam-3"), 120)
    assert "400 Bad Request" not in hosts.log("cam-1")

    lines["cam-2"].silent = False
    again = "again"
    summary = finish(hosts.run(out=again), hosts, again, RUN_S)
    (north,) = summary.clusters
    assert set(north.lost) == {"cam-3"}, "the silent one is back, the revoked one is not"
    assert "its key was revoked" in north.lost["cam-3"]
