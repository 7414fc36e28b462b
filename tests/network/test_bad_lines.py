"""A fleet with mutual TLS whose lines delay, cut, crawl and fall silent; revoked and renewed keys.

Every line counts what it did, and a test ends by looking at the counts: a run over lines on which
nothing happened fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_line import BadLine

from acme_fleet.config.fleet import Fleet
from acme_fleet.network.hosts import certificates, keygen
from acme_fleet.network.hosts.site import Site
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from acme_research.frame.loopback import Hosts, hosts_up, short_folder, wait_for
from tiny_fleet import tiny

_RUN_S = 300
_GRACE_S = 120


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    changes = {
        "reference.training.epochs": 2,
        "backbone.distillation.training.epochs": 1,
        "search.rivals": False,
        "personalization.rounds": 1,
        "personalization.quorum": 0.3,
        "personalization.mix": "weights",
    }
    content = tiny(**changes).model_dump()
    (north, *_) = content["clusters"]
    third = {**north["devices"][0], "name": "cam-3"}
    return Fleet.model_validate(
        {**content, "clusters": [{**north, "devices": [*north["devices"], third]}]}
    )


@pytest.fixture(scope="module")
def lines() -> Iterator[dict[str, BadLine]]:
    """The lines of all who dial, by name; good ones until a test says otherwise."""
    found: dict[str, BadLine] = {}
    yield found
    for line in found.values():
        line.close()


@pytest.fixture(scope="module")
def hosts(fleet: Fleet, lines: dict[str, BadLine]) -> Iterator[Hosts]:
    def dial(name: str, port: int) -> int:
        lines[name] = BadLine(port, seed=len(lines))
        return lines[name].port

    with short_folder() as folder:
        hosts = Hosts(folder, fleet, {"grace_s": _GRACE_S, "mutual_tls": True}, dial=dial)
        with hosts_up(hosts):
            yield hosts


def _finish(process: subprocess.Popen[bytes], hosts: Hosts, out: str) -> Summary:
    try:
        code = process.wait(timeout=_RUN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert code == 0, hosts.log(out)
    return Summary.read(hosts.folder / out / "summary.json")


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
    fleet: Fleet, hosts: Hosts, lines: dict[str, BadLine], tmp_path: Path
):
    customize(fleet, tmp_path / "run")
    lines["north"].delay_s = 0.1
    lines["cam-1"].delay_s = 0.2
    lines["cam-2"].cut_after, lines["cam-2"].cut_share = 60_000, 0.1
    lines["cam-3"].bytes_up = lines["cam-3"].bytes_down = 60_000
    for name in ("cam-1", "cam-2", "cam-3"):
        lines[name].cut_all()  # what is open was drawn before
    out, before = "bad", _shown(hosts, "north")
    run = hosts.run(out=out)
    wait_for(lambda: hosts.sent(out, "north", "cam-1", "HeaderAssignment") > 0, _RUN_S)
    _renew(hosts, "north")
    wait_for(lambda: _shown(hosts, "north") != before, 60)
    assert run.poll() is None, "the run was over before the certificate was new"
    wait_for(lambda: hosts.sent(out, "north", "cam-1", "RoundStart") > 0, _RUN_S)
    lines["cam-1"].silent = True
    wait_for(lambda: lines["cam-1"].held_up > 0, 60)
    lines["cam-1"].cut_all()  # what was held up is lost
    lines["cam-1"].silent = False
    lines["north"].cut_all()
    summary = _finish(run, hosts, out)
    assert all(cluster.lost == {} for cluster in summary.clusters)
    for device in fleet.devices:
        expected = (tmp_path / "run" / "devices" / device.name / "model.safetensors").read_bytes()
        assert hosts.model(out, device.name) == expected, device.name
    assert lines["cam-2"].cut > 1
    assert all(line.passed > 2**14 for line in lines.values())


def test_a_revoked_device_is_refused_and_a_silent_one_is_left_out(
    fleet: Fleet, hosts: Hosts, lines: dict[str, BadLine]
):
    """The last test: nobody lets the revoked device in again."""
    for line in lines.values():
        line.delay_s = line.cut_share = 0.0
        line.cut_after = line.bytes_up = line.bytes_down = 0
    hosts.configure("north", grace_s=15)
    out = "losses"
    run = hosts.run(out=out)
    wait_for(lambda: hosts.sent(out, "north", "cam-1", "RoundStart") > 0, _RUN_S)
    lines["cam-2"].silent = True
    for folder in (hosts.folder / "keys", hosts.keys("north")):  # the authority, and its server
        keygen.revoke(folder, "cam-3")
    shutil.copy(hosts.folder / "keys" / certificates.REVOKED, hosts.keys("north"))
    summary = _finish(run, hosts, out)
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
    summary = _finish(hosts.run(out=again), hosts, again)
    (north,) = summary.clusters
    assert set(north.lost) == {"cam-3"}, "the silent one is back, the revoked one is not"
    assert "its key was revoked" in north.lost["cam-3"]
