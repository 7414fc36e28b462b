"""Site files, keys, the proxy's configuration, units, and processes that are kept running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from typer.testing import CliRunner

from acme_fleet.cli import app, hosts
from acme_fleet.deploy import keys
from acme_fleet.deploy.processes import Service, keep_running
from acme_fleet.deploy.proxy import configuration
from acme_fleet.deploy.site import Site, fingerprint
from acme_fleet.deploy.superlink import environment
from acme_fleet.deploy.warm import write_stub
from acme_fleet.errors import FleetError, RunError
from acme_fleet.fleet import Fleet
from acme_fleet.report.overhead import overhead_text, overheads_s

_FLEET: dict[str, Any] = {
    "clusters": [
        {"name": "north", "devices": [{"name": "cam-1", "storage": "1 MB"}]},
        {"name": "south", "devices": [{"name": "cam-2", "storage": "1 MB"}]},
    ]
}
_SITE: dict[str, Any] = {"fleet": "fleet.yaml", "state": "state", "keys": "keys"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not start Flower, and does without it."""
    monkeypatch.setattr(hosts, "find_spec", lambda _: True)


@pytest.fixture
def write_site(tmp_path: Path) -> Any:
    """``write_site(role="edge", …)``: a site file beside a fleet file."""

    def write(**entries: Any) -> Path:
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(_FLEET))
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump(_SITE | entries))
        return path

    return write


# --- the site file ----------------------------------------------------------------------------


def test_site_knows_its_place(write_site: Any, tmp_path: Path):
    site = Site.from_yaml(write_site(role="edge", name="north", upstream="cloud.example.org:9443"))
    assert site.members(site.load_fleet()) == ["cam-1"]
    assert site.state == tmp_path / "state"
    cloud = Site.from_yaml(write_site(role="cloud"))
    assert cloud.members(cloud.load_fleet()) == ["north", "south"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"role": "edge", "name": "north"}, "`upstream` is needed by an edge or device"),
        ({"role": "cloud", "upstream": "a:1"}, "by no cloud"),
        ({"role": "device", "upstream": "a:1"}, "the cloud is named `cloud`"),
        ({"role": "cloud", "port": 9444}, "`port` and `local_port` must differ"),
        ({"role": "cloud", "ports": 1}, "unknown key"),
        ({"role": "device", "name": "cam-1", "upstream": "https://a"}, "upstream"),
        ({"role": "cloud", "address": "0.0.0.0; include /etc/passwd"}, "address"),
    ],
)
def test_mistakes_in_a_site_file_are_named(entries: dict[str, Any], message: str, write_site: Any):
    with pytest.raises(FleetError, match=message):
        Site.from_yaml(write_site(**entries))


def test_host_that_the_fleet_does_not_know(write_site: Any):
    site = Site.from_yaml(write_site(role="device", name="cam-9", upstream="a:1"))
    with pytest.raises(FleetError, match="no device named cam-9; it has cam-1, cam-2"):
        site.load_fleet()


def test_fingerprint_is_of_the_fleet_and_not_of_the_paths():
    fleet = Fleet.parse(_FLEET)
    assert fingerprint(fleet) != fingerprint(fleet.model_copy(update={"seed": 1}))
    arrays = {"source": "arrays", "train": "here.npz"}
    one = Fleet.parse(_FLEET | {"data": arrays})
    other = Fleet.parse(_FLEET | {"data": arrays | {"train": "/there.npz"}})
    assert fingerprint(one) == fingerprint(other) != fingerprint(fleet)


# --- what the engine costs --------------------------------------------------------------------


def test_overhead_is_the_time_in_which_nobody_computed():
    def at(second: float, **event: Any) -> dict[str, Any]:
        return {"time": f"2026-11-21T10:00:{second:06.3f}+00:00", **event}

    def sent(second: float, sender: str, to: str) -> dict[str, Any]:
        return at(second, **{"from": sender, "to": to, "type": "X", "bytes": 1})

    events = [
        sent(0, "cloud", "north"),
        sent(1, "north", "cam-1"),
        sent(1, "north", "cam-2"),
        at(2, stage="round 1", actor="cam-1", seconds=2.0),
        sent(2, "north", "cam-2"),  # asked again
        sent(5, "cam-1", "north"),
        sent(8, "cam-2", "north"),
        sent(10, "north", "cam-1"),
        sent(13, "cam-1", "north"),
        sent(20, "north", "cloud"),
    ]
    told = overheads_s(events[::-1], {"north"})
    assert told == {("north", "cam-1"): [2.0, 3.0], ("north", "cam-2"): [7.0]}
    assert overhead_text(events, {"north"}).startswith("engine: 3.0 s for a question")


# --- keys -------------------------------------------------------------------------------------


def test_keys_are_made_and_everything_is_told(tmp_path: Path):
    folder = tmp_path / "keys"
    hosts = ["--host", "cloud=cloud.example.org,10.0.0.1", "--host", "north=10.0.0.2"]
    told = CliRunner().invoke(app, ["keys", "init", "--keys", str(folder), *hosts])
    assert told.exit_code == 0, told.output
    assert "ca.key offline" in told.output
    node = CliRunner().invoke(app, ["keys", "device", "cam-1", "--keys", str(folder)])
    assert node.exit_code == 0, node.output
    assert "peers/cam-1.pub" in node.output
    secret = [folder / "ca.key", folder / "north/server.key", folder / "cam-1/node.key"]
    assert [path.stat().st_mode & 0o777 for path in secret] == [0o600] * 3
    # Nothing is overwritten, and the authority serves for a host that comes later.
    again = CliRunner().invoke(app, ["keys", "device", "cam-1", "--keys", str(folder)])
    assert again.exit_code == 2
    authority = (folder / "ca.crt").read_bytes()
    later = ["keys", "init", "--keys", str(folder), "--host", "south=10.0.0.3"]
    assert CliRunner().invoke(app, later).exit_code == 0
    assert (folder / "ca.crt").read_bytes() == authority
    wrong = ["keys", "init", "--keys", str(folder), "--host", "../x=10.0.0.3"]
    assert CliRunner().invoke(app, wrong).exit_code == 2


def test_certificates_hold_for_their_names_only(tmp_path: Path):
    keys.make_authority(tmp_path)
    keys.make_server(tmp_path, tmp_path / "north", ["north.example.org", "10.0.0.2"])
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "north/server.crt").read_bytes())
    policy = PolicyBuilder().store(Store([authority]))
    for name in ("north.example.org", "localhost"):
        policy.build_server_verifier(x509.DNSName(name)).verify(server, [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("cloud.example.org")).verify(server, [])
    keys.make_authority(tmp_path / "other")
    other = x509.load_pem_x509_certificate((tmp_path / "other/ca.crt").read_bytes())
    stranger = PolicyBuilder().store(Store([other]))
    with pytest.raises(VerificationError):
        stranger.build_server_verifier(x509.DNSName("localhost")).verify(server, [])


def test_a_nodes_keys_belong_together_and_to_one_node(tmp_path: Path):
    for name in ("cam-1", "cam-2"):
        keys.make_node(tmp_path / name)
    private = load_ssh_private_key((tmp_path / "cam-1/node.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "cam-1/node.pub").read_bytes())
    assert private.public_key() == public  # type: ignore[union-attr]
    peers = tmp_path / "edge" / keys.PEERS
    peers.mkdir(parents=True)
    (peers / "cam-1.pub").write_bytes((tmp_path / "cam-1/node.pub").read_bytes())
    with pytest.raises(FleetError, match=r"no public key of cam-2"):
        keys.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])
    (peers / "cam-2.pub").write_text((peers / "cam-1.pub").read_text().strip() + " a comment\n")
    with pytest.raises(FleetError, match="cam-2 and cam-1 have the same public key"):
        keys.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])
    (peers / "cam-2.pub").write_bytes((tmp_path / "cam-2/node.pub").read_bytes())
    assert list(keys.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])) == ["cam-1", "cam-2"]


def test_without_flower_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts, "find_spec", lambda _: None)
    told = CliRunner().invoke(app, ["keys", "device", "cam-1"])
    assert told.exit_code == 2
    assert "acme-fleet[flower]" in told.output


# --- what is started --------------------------------------------------------------------------


def test_proxy_passes_on_nothing_but_what_nodes_need(write_site: Any):
    text = configuration(Site.from_yaml(write_site(role="cloud", port=1234, local_port=1235)))
    assert "listen 0.0.0.0:1234 ssl;" in text
    assert text.count("proxy_pass https:") == 1
    assert "location / { return 404; }" in text
    assert "control" not in text
    assert "runtime" not in text
    assert "|register-node" not in text


def test_flower_is_silent_and_fetches_nothing(tmp_path: Path):
    told = environment(tmp_path / "home")
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert told["FLWR_HOME"] == str(tmp_path / "home")


@pytest.mark.parametrize("kind", ["systemd", "compose"])
def test_units_are_generated(kind: str, write_site: Any, tmp_path: Path):
    path = write_site(role="edge", name="north", upstream="a:1")
    told = CliRunner().invoke(app, ["up", "edge", "--config", str(path), "--print", kind])
    assert told.exit_code == 0, told.output
    assert str(path) in told.output
    if kind == "compose":
        (service,) = yaml.safe_load(told.output)["services"].values()
        assert service["command"] == ["acme", "up", "edge", "--config", str(path)]
        assert f"{tmp_path}/state:{tmp_path}/state:rw" in service["volumes"]
        assert service["ports"] == ["9443:9443"]
    else:
        assert f"ReadWritePaths={tmp_path}/state" in told.output
    wrong = CliRunner().invoke(app, ["up", "cloud", "--config", str(path), "--print", kind])
    assert wrong.exit_code == 2


def test_run_needs_a_site_file_for_flower(write_site: Any, tmp_path: Path):
    path = write_site(role="cloud")
    run = ["run", str(tmp_path / "fleet.yaml"), "--out", str(tmp_path / "run")]
    for wrong in (["--engine", "flower"], ["--config", str(path)]):
        told = CliRunner().invoke(app, [*run, *wrong])
        assert told.exit_code == 2
        assert "--config" in told.output
    seed = ["--engine", "flower", "--config", str(path), "--seed", "7"]
    told = CliRunner().invoke(app, [*run, *seed])
    assert told.exit_code == 2
    assert "its seed differs" in told.output


def test_stand_in_runs_the_real_command_without_its_socket(tmp_path: Path):
    real = tmp_path / "real"
    real.write_text("#!/bin/sh\necho real $1\n")
    real.chmod(0o700)
    write_stub(tmp_path / "bin", tmp_path / "none.sock", str(real))
    told = subprocess.run(
        [tmp_path / "bin/flwr-clientapp", "--token"], capture_output=True, text=True, check=True
    )
    assert told.stdout == "real --token\n"


def _alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_processes_are_shown_started_again_and_stopped_with_their_children(tmp_path: Path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{child.pid}}\\n')\n"
        "print('hello', flush=True)\n"
        "time.sleep(600)\n"
    )
    service = Service("part", [sys.executable, "-c", code], os.environ)
    lines: list[str] = []

    def children() -> list[int]:
        path = tmp_path / "pids"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(condition: Any) -> None:
        deadline = time.monotonic() + 30
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)

    def meddle() -> None:
        wait(lambda: children())
        assert service.process is not None
        service.process.kill()
        wait(lambda: len(children()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        threading.Thread(target=meddle, daemon=True).start()
        keep_running([service], lines.append)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert sum(line.split() == ["part", "hello"] for line in lines) == 2
    assert any("ended with -9; starting it again" in line for line in lines)
    assert len(children()) == 2
    wait(lambda: not any(_alive(pid) for pid in children()))
    assert not any(_alive(pid) for pid in children())


def test_service_that_ends_at_once_is_an_error():
    def never() -> None:
        raise RunError("not yet")

    service = Service("part", [sys.executable, "-c", "raise SystemExit(3)"], os.environ, never)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(RunError, match="part ended at once"):
            keep_running([service], lambda _: None)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
