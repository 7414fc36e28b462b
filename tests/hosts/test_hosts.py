"""Site files, keys, the proxy's configuration, units, and processes that are kept running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from pwd import getpwnam
from string import Template
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from typer.testing import CliRunner

from acme_fleet.cli import app, hosts
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError, RunError
from acme_fleet.network.flower.link import WAIT_S
from acme_fleet.network.hosts import certificates, preflight, units
from acme_fleet.network.hosts.names import is_host
from acme_fleet.network.hosts.proxy import configuration, proxy_command
from acme_fleet.network.hosts.site import Site, fingerprint
from acme_fleet.network.hosts.superlink import environment
from acme_fleet.network.hosts.supervisor import Service, keep_running
from acme_fleet.network.hosts.up import services, up
from acme_fleet.network.hosts.warm import write_stub
from acme_fleet.report.overhead import overhead_text, overheads_s
from acme_fleet.runs.events import MessageEvent, StageEvent
from acme_fleet.runs.locks import held

_FLEET: dict[str, Any] = {
    "clusters": [
        {"name": "north", "devices": [{"name": "cam-1", "storage": "1 MB"}]},
        {"name": "south", "devices": [{"name": "cam-2", "storage": "1 MB"}]},
    ]
}
_ROOM = 1236  # port of the waiting room
_SITE: dict[str, Any] = {"fleet": "fleet.yaml", "state": "state", "keys": "keys"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not start Flower, and do without it."""
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
        ({"role": "edge", "name": "north"}, "upstream: is missing; write HOST:PORT of the cloud"),
        ({"role": "cloud", "upstream": "a:1"}, "upstream: a cloud dials nobody; remove it (got 'a"),
        ({"role": "device", "upstream": "a:1"}, "name: write the name that this device has"),
        ({"role": "cloud", "name": "north"}, "name: a cloud has none; remove it"),
        ({"role": "cloud", "port": 9444}, "local_port: must differ from port (got 9444 for both)"),
        ({"role": "cloud", "port": 70000}, "port: Input should be less than or equal to 65535"),
        (
            {"role": "cloud", "ports": 1},
            "ports: unknown key; remove it or correct its spelling; did you mean port? (got 1)",
        ),
        (
            {"role": "device", "name": "cam-1", "upstream": "a:1", "port": 9443},
            "port: is for servers, and nobody dials a device; remove it",
        ),
        ({"role": "clout"}, "role: Input should be 'cloud', 'edge' or 'device' (got 'clout')"),
        ({}, "role: is missing; add it"),
        ({"role": "edge", "name": "a/b", "upstream": "a:1"}, "name: a name has 1 to 64 letters"),
        ({"role": "cloud", "address": "0.0.0.0; include x"}, "address: write an IP address of"),
        ({"role": "cloud", "fleet": "none.yaml"}, "fleet: there is no file"),
        ({"role": "cloud", "state": "s" * 100}, "too long a path for the sockets in it"),
        ({"role": "cloud", "state": "a$b"}, "state: choose a path without quotes, dollar signs"),
        ({"role": "cloud", "keys": 'a"; include x'}, "keys: choose a path without quotes"),
        *(
            ({"role": "device", "name": "cam-1", "upstream": wrong}, "upstream: write HOST:PORT of")
            for wrong in ("https://a", "north", "north:", "north:0", "10.0.0.300:9443", "a b:1")
        ),
    ],
)
def test_mistakes_in_a_site_file_are_named(entries: dict[str, Any], message: str, write_site: Any):
    """File, field and what is right, in words: no pattern, no name of another file."""
    path = write_site(**entries)
    with pytest.raises(FleetError) as refusal:
        Site.from_yaml(path)
    told = str(refusal.value)
    assert told.startswith(f"{path}: ")
    assert message in told
    assert "^[" not in told


@pytest.mark.parametrize("content", [None, "role: [", "- role\n", "caf\xe9"])
def test_site_files_that_hold_no_settings(content: str | None, tmp_path: Path):
    path = tmp_path / "site.yaml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(FleetError, match=re.escape(str(path))) as refusal:
        Site.from_yaml(path)
    assert "Errno" not in str(refusal.value)


def test_host_that_the_fleet_does_not_know(write_site: Any):
    site = Site.from_yaml(write_site(role="device", name="cam-9", upstream="a:1"))
    with pytest.raises(
        FleetError, match=r"name: .* has no device of this name; it has cam-1, cam-2; did"
    ):
        site.load_fleet()


@pytest.mark.parametrize(
    ("text", "right"),
    [
        *((name, True) for name in ("north", "cloud.example.org", "a-b.c1", "10.0.0.7", "fd00::1")),
        *((name, True) for name in ("1e100.net", "x" * 63, ".".join(["x" * 31] * 7))),
        *((name, False) for name in ("", "-a", "a-", "a..b", "a_b", "10.0.0.300", "10.0", "*.a.b")),
        *((name, False) for name in ("x" * 64, ".".join(["x" * 31] * 8), "a b", "a:1", "http://a")),
        *((name, False) for name in ("münchen.de", "a\n", "[::1]")),
    ],
)
def test_host_names_and_addresses(text: str, right: bool):
    assert is_host(text) is right


def test_fingerprint_is_of_the_fleet_and_not_of_the_paths():
    fleet = Fleet.parse(_FLEET)
    assert fingerprint(fleet) != fingerprint(fleet.model_copy(update={"seed": 1}))
    arrays = {"source": "arrays", "train": "here.npz"}
    one = Fleet.parse(_FLEET | {"data": arrays})
    other = Fleet.parse(_FLEET | {"data": arrays | {"train": "/there.npz"}})
    assert fingerprint(one) == fingerprint(other) != fingerprint(fleet)


# --- what the engine costs --------------------------------------------------------------------


def test_overhead_is_the_time_in_which_nobody_computed():
    def at(second: float) -> str:
        return f"2026-11-21T10:00:{second:06.3f}+00:00"

    def sent(second: float, sender: str, to: str) -> MessageEvent:
        return MessageEvent(
            time=at(second),
            sender=sender,
            receiver=to,
            type="X",
            size_bytes=1,
            tier="cloud" if "cloud" in (sender, to) else "device",
            direction="down" if sender == "cloud" or to.startswith("cam") else "up",
        )

    stage = StageEvent(time=at(2), stage="round 1", actor="cam-1", tier="device", seconds=2.0)
    events = [
        sent(0, "cloud", "north"),
        sent(1, "north", "cam-1"),
        sent(1, "north", "cam-2"),
        stage,
        sent(2, "north", "cam-2"),  # asked again
        sent(5, "cam-1", "north"),
        sent(8, "cam-2", "north"),
        sent(10, "north", "cam-1"),
        sent(13, "cam-1", "north"),
        sent(20, "north", "cloud"),
    ]
    told = overheads_s(events[::-1])
    assert told == {("north", "cam-1"): [2.0, 3.0], ("north", "cam-2"): [7.0]}
    assert overhead_text(events).startswith("engine: 3.0 s for a question")


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


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["init", "--host", "../x=10.0.0.3"], "'../x' is no name of a fleet file"),
        (["init", "--host", "north"], "write NAME=ADDRESS"),
        (["init", "--host", "north=10.0.0.300"], "'10.0.0.300' is neither a host name nor an IP"),
        (["init", "--host", "north=10.0.0.3:9443"], "write it without a port"),
        (["device", "cloud"], "the cloud dials nobody and has no such key"),
        (["device", "cam 1"], "'cam 1' is no name of a fleet file"),
        (["device", "cam-3", "--fleet"], "has no device or edge of this name; it has"),
        (["init", "--host", "nroth=10.0.0.3", "--fleet"], "did you mean north?"),
        (["init", "--host", "cam-1=10.0.0.3", "--fleet"], "has no edge server of this name"),
    ],
)
def test_keys_are_made_for_nobody_else(command: list[str], message: str, tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(_FLEET))
    command = ["keys", *command, *([str(path)] if command[-1] == "--fleet" else [])]
    told = CliRunner().invoke(app, [*command, "--keys", str(tmp_path / "keys")])
    assert told.exit_code == 2
    assert message in " ".join(told.output.split())
    assert not (tmp_path / "keys").exists()


def test_keys_of_a_fleet_say_whose_server_gets_what(tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(_FLEET))
    both = ["--keys", str(tmp_path / "keys"), "--fleet", str(path)]

    def told(*command: str) -> str:
        return " ".join(CliRunner().invoke(app, ["keys", *command, *both]).output.split())

    assert "the keys folder of edge south as peers/cam-2.pub" in told("device", "cam-2")
    assert "the keys folder of the cloud as peers/south.pub" in told("device", "south")
    assert "without a certificate so far: cloud, south" in told("init", "--host", "north=10.0.0.2")


def test_certificates_hold_for_their_names_only(tmp_path: Path):
    certificates.make_authority(tmp_path)
    certificates.make_server(tmp_path, tmp_path / "north", ["north.example.org", "10.0.0.2"])
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "north/server.crt").read_bytes())
    policy = PolicyBuilder().store(Store([authority]))
    for name in ("north.example.org", "localhost"):
        policy.build_server_verifier(x509.DNSName(name)).verify(server, [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("cloud.example.org")).verify(server, [])
    certificates.make_authority(tmp_path / "other")
    other = x509.load_pem_x509_certificate((tmp_path / "other/ca.crt").read_bytes())
    stranger = PolicyBuilder().store(Store([other]))
    with pytest.raises(VerificationError):
        stranger.build_server_verifier(x509.DNSName("localhost")).verify(server, [])


def test_servers_of_one_name_have_all_their_addresses(tmp_path: Path):
    hosts = ["--host", "north=north.example.org", "--host", "north=10.0.0.2"]
    told = CliRunner().invoke(app, ["keys", "init", "--keys", str(tmp_path), *hosts])
    assert "for north.example.org, 10.0.0.2" in " ".join(told.output.split())
    server = x509.load_pem_x509_certificate((tmp_path / "north/server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "north.example.org" in names.get_values_for_type(x509.DNSName)
    assert ip_address("10.0.0.2") in names.get_values_for_type(x509.IPAddress)


@pytest.mark.parametrize("strange", [certificates.CA, certificates.SERVER, certificates.SERVER_KEY])
def test_a_servers_files_belong_together(strange: str, tmp_path: Path):
    for name in ("one", "other"):
        certificates.make_authority(tmp_path / name)
        certificates.make_server(tmp_path / name, tmp_path / name, ["localhost"])
        certificates.check_server(tmp_path / name, "keys")
    (tmp_path / "one" / strange).write_bytes((tmp_path / "other" / strange).read_bytes())
    with pytest.raises(FleetError, match=r"server.crt does not belong to the "):
        certificates.check_server(tmp_path / "one", "keys")
    (tmp_path / "one" / strange).write_bytes(b"-----BEGIN")
    with pytest.raises(FleetError, match="is damaged: "):
        certificates.check_server(tmp_path / "one", "keys")
    (tmp_path / "one" / strange).unlink()
    with pytest.raises(FleetError, match=rf"cannot read .*/{strange}: No such file"):
        certificates.check_server(tmp_path / "one", "keys")


def test_a_nodes_keys_belong_together_and_to_one_node(tmp_path: Path):
    for name in ("cam-1", "cam-2"):
        certificates.make_node(tmp_path / name)
    private = load_ssh_private_key((tmp_path / "cam-1/node.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "cam-1/node.pub").read_bytes())
    assert private.public_key() == public  # type: ignore[union-attr]
    peers = tmp_path / "edge" / certificates.PEERS
    peers.mkdir(parents=True)
    (peers / "cam-1.pub").write_bytes((tmp_path / "cam-1/node.pub").read_bytes())
    with pytest.raises(FleetError, match=r"no public key of cam-2"):
        certificates.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])
    (peers / "cam-2.pub").write_text((peers / "cam-1.pub").read_text().strip() + " a comment\n")
    with pytest.raises(FleetError, match="cam-2 and cam-1 have the same public key"):
        certificates.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])
    (peers / "cam-2.pub").write_text("-----BEGIN EC PRIVATE KEY-----\n")
    with pytest.raises(FleetError, match=r"cam-2.pub is no public key; copy the node.pub of cam-2"):
        certificates.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])
    (peers / "cam-2.pub").write_bytes((tmp_path / "cam-2/node.pub").read_bytes())
    assert list(certificates.public_keys(tmp_path / "edge", ["cam-1", "cam-2"])) == [
        "cam-1",
        "cam-2",
    ]


def test_without_flower_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts, "find_spec", lambda _: None)
    told = CliRunner().invoke(app, ["keys", "device", "cam-1"])
    assert told.exit_code == 2
    assert "acme-fleet[flower]" in told.output


# --- before anything is started ---------------------------------------------------------------


@pytest.fixture
def make_keys(tmp_path: Path) -> Any:
    """``make_keys(…)``: a host's folders, with its keys and of those that dial it; not root's."""

    def make(*members: str, folder: Path = tmp_path) -> None:
        certificates.make_authority(folder / "keys")
        certificates.make_server(folder / "keys", folder / "keys", ["localhost"])
        certificates.make_node(folder / "keys")
        for name in members:
            certificates.make_node(folder / "of" / name)
            public = folder / "keys" / certificates.PEERS / f"{name}.pub"
            public.parent.mkdir(exist_ok=True)
            public.write_bytes((folder / "of" / name / certificates.NODE_PUBLIC).read_bytes())
        (folder / "keys" / certificates.CA_KEY).rename(folder / certificates.CA_KEY)
        (folder / "state").mkdir()
        _give_away(folder / "state", *(folder / "keys").iterdir())

    return make


def test_a_port_that_is_taken_is_waited_for_and_then_named(
    write_site: Any, monkeypatch: pytest.MonkeyPatch
):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            local_port = probe.getsockname()[1]
        ports = {"port": port, "local_port": local_port}
        path = write_site(role="cloud", address="127.0.0.1", **ports)
        site = Site.from_yaml(path)
        monkeypatch.setattr(preflight, "_FREE_S", 0.0)
        with pytest.raises(FleetError, match=rf"port: cannot listen on 127.0.0.1 port {port}: "):
            preflight.wait_until_free(path, site)
        monkeypatch.setattr(preflight, "_FREE_S", 30.0)
        threading.Timer(0.2, other.close).start()
        preflight.wait_until_free(path, site)


def test_an_address_that_this_host_has_not_is_named(write_site: Any):
    path = write_site(role="cloud", address="192.0.2.1")
    with pytest.raises(FleetError, match=r"address: cannot listen on 192.0.2.1 .* of this host"):
        preflight.wait_until_free(path, Site.from_yaml(path))


@pytest.fixture
def server(tmp_path: Path, make_keys: Any) -> Iterator[int]:
    """The port of a TLS server with the certificate in the keys folder."""
    make_keys()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "keys/server.crt", tmp_path / "keys/server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=answer, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_the_server_above_must_be_of_the_same_authority(
    server: int, write_site: Any, tmp_path: Path
):
    path = write_site(role="device", name="cam-1", upstream=f"localhost:{server}")
    site = Site.from_yaml(path)
    assert preflight.check_upstream(path, site) == ""
    certificates.make_authority(tmp_path / "other")
    (tmp_path / "keys/ca.crt").write_bytes((tmp_path / "other/ca.crt").read_bytes())
    with pytest.raises(FleetError, match=r"shows a certificate that .*ca.crt does not vouch for: "):
        preflight.check_upstream(path, site)
    (tmp_path / "keys/ca.crt").write_text("-----BEGIN")
    with pytest.raises(FleetError, match=r"keys: cannot use .*/keys/ca.crt: "):
        preflight.check_upstream(path, site)


def test_the_server_above_may_come_up_later(make_keys: Any, write_site: Any):
    make_keys()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = write_site(role="device", name="cam-1", upstream=f"127.0.0.1:{port}")
    assert preflight.check_upstream(path, Site.from_yaml(path)) == "Connection refused"


# --- what is started --------------------------------------------------------------------------


def test_proxy_passes_on_nothing_but_what_nodes_need(write_site: Any):
    text = configuration(
        Site.from_yaml(write_site(role="cloud", port=1234, local_port=1235)), _ROOM
    )
    assert "listen 0.0.0.0:1234 ssl;" in text
    passed_on = re.findall(r"proxy_pass (\S+);", text)
    assert passed_on == [*["https://superlink$uri"] * 2, f"http://127.0.0.1:{_ROOM}/"]
    assert "server 127.0.0.1:1235;" in text
    assert "location / { return 404; }" in text
    assert "control" not in text
    assert "runtime" not in text
    assert "|register-node" not in text


def test_one_address_cannot_take_all_of_the_proxys_connections(write_site: Any):
    text = configuration(Site.from_yaml(write_site(role="cloud")), _ROOM)
    limit = int(re.findall(r"limit_conn addresses (\d+);", text)[0])
    (all_connections,) = re.findall(r"worker_connections (\d+);", text)
    assert 2 * limit < int(all_connections)  # each has a second one to the SuperLink
    assert "limit_conn_zone $binary_remote_addr zone=addresses:" in text
    seconds = dict(re.findall(r"(\w+_timeout) (\d+)s;", text))
    assert all(int(seconds[f"{name}_timeout"]) <= 30 for name in ("client_header", "client_body"))
    assert int(seconds["proxy_read_timeout"]) > WAIT_S, "a peer may take its time to answer"


def test_host_is_up_once(write_site: Any, monkeypatch: pytest.MonkeyPatch):
    path = write_site(role="cloud")
    site = Site.from_yaml(path)
    monkeypatch.setattr("acme_fleet.network.hosts.up.checked", lambda *_: (site, site.load_fleet()))
    with held(site.state), pytest.raises(RunError, match=rf"{site.state} is in use by process"):
        up(path, "cloud", lambda _: None)


def test_flower_is_silent_and_fetches_nothing(tmp_path: Path):
    told = environment(tmp_path / "home")
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert told["FLWR_HOME"] == str(tmp_path / "home")


def _give_away(*paths: Path) -> None:
    """To a user without a name, if these are root's."""
    for path in paths:
        if os.getuid() == 0:
            os.chown(path, 54321, 54321)


def _printed(path: Path, role: str, kind: str) -> str:
    told = CliRunner().invoke(app, ["up", role, "--config", str(path), "--print", kind])
    assert told.exit_code == 0, told.output
    return told.output


def _service(path: Path, role: str) -> dict[str, Any]:
    """The service of a Compose file, as an engine reads it: ``$$`` is a dollar sign."""
    content = yaml.safe_load(Template(_printed(path, role, "compose")).substitute())
    (service,) = content["services"].values()
    return service


def _mounts(service: dict[str, Any]) -> dict[str, bool]:
    """True if a container can write to a path, which is the same inside as outside."""
    assert all(mount["source"] == mount["target"] for mount in service["volumes"])
    return {m["source"]: not m.get("read_only", False) for m in service["volumes"]}


def test_unit_for_compose(write_site: Any, make_keys: Any, tmp_path: Path):
    make_keys("cam-1")
    path = write_site(role="edge", name="north", upstream="a:1")
    service = _service(path, "edge")
    assert service["command"] == ["acme", "up", "edge", "--config", str(path)]
    assert service["ports"] == ["9443:9443"]
    writable = [place for place, can_write in _mounts(service).items() if can_write]
    assert writable == [f"{tmp_path}/state"]
    assert service["environment"]["HOME"] in writable  # caches of libraries
    owner = (tmp_path / "keys" / certificates.SERVER_KEY).stat()
    assert service["user"] == f"{owner.st_uid}:{owner.st_gid}"  # nobody else can read the key


def test_unit_for_systemd(
    write_site: Any, make_keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(units, "nginx", lambda: "nginx")
    make_keys("cam-1")
    path = write_site(role="edge", name="north", upstream="a:1")
    lines = _printed(path, "edge", "systemd").splitlines()
    assert f'ReadWritePaths="{tmp_path}/state"' in lines
    assert f'Environment="HOME={tmp_path}/state"' in lines
    (user,) = (line.removeprefix("User=") for line in lines if line.startswith("User="))
    owner = (tmp_path / "keys" / certificates.SERVER_KEY).stat().st_uid
    assert (int(user) if user.isdecimal() else getpwnam(user).pw_uid) == owner


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(write_site: Any, make_keys: Any, tmp_path: Path):
    make_keys()
    path = write_site(role="device", name="cam-1", upstream="a:1")
    unit = tmp_path / "acme-cam-1.service"
    unit.write_text(
        _printed(path, "device", "systemd").replace(
            str(Path(sys.executable).with_name("acme")), sys.executable
        )
    )
    told = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_units_of_odd_paths(make_keys: Any, tmp_path: Path):
    """Spaces, and what systemd (``%``) and Compose (``$``, ``:``) give a meaning."""
    folder = tmp_path / "a b:%h"
    folder.mkdir()
    make_keys(folder=folder)
    (folder / "own $data.npz").touch()
    devices = [{"name": "cam-1", "storage": "1 MB", "data": "own $data.npz"}]
    fleet = {"clusters": [{"name": "north", "devices": devices}]}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    path = folder / "$site.yaml"
    site = _SITE | {"role": "device", "name": "cam-1", "upstream": "a:1"}
    path.write_text(yaml.safe_dump(site))
    service = _service(path, "device")
    assert service["command"][-1] == str(path)
    assert str(folder / "own $data.npz") in _mounts(service)
    unit = _printed(path, "device", "systemd")
    place = f"{tmp_path}/a b:%%h"
    assert f' --config "{place}/$$site.yaml"\n' in unit
    assert f'\nReadWritePaths="{place}/state"\n' in unit


def test_a_unit_is_for_one_user_who_is_not_root(write_site: Any, make_keys: Any, tmp_path: Path):
    make_keys()
    path = write_site(role="device", name="cam-1", upstream="a:1")
    _printed(path, "device", "compose")

    def told() -> str:
        command = ["up", "device", "--config", str(path), "--print", "compose"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        return " ".join(result.output.split())

    (tmp_path / certificates.CA_KEY).rename(tmp_path / "keys" / certificates.CA_KEY)
    assert "holds the authority's ca.key, which no host may have" in told()
    (tmp_path / "keys" / certificates.CA_KEY).rename(tmp_path / certificates.CA_KEY)
    (tmp_path / "state").rmdir()
    assert "state: there is no folder" in told()
    if os.getuid() == 0:
        (tmp_path / "state").mkdir()
        assert f"install -d -m 700 -o 54321 {tmp_path / 'state'}" in told()
        os.chown(tmp_path / "keys" / certificates.NODE_KEY, 0, 0)
        assert "node.key belongs to root; give the keys to the user" in told()


def test_a_container_does_not_have_the_address_of_its_host(write_site: Any, make_keys: Any):
    make_keys("north", "south")
    _printed(write_site(role="cloud", address="::"), "cloud", "compose")
    path = write_site(role="cloud", address="10.0.0.7")
    told = CliRunner().invoke(app, ["up", "cloud", "--config", str(path), "--print", "compose"])
    assert told.exit_code == 2
    assert "address: a container does not have the host's addresses" in " ".join(
        told.output.split()
    )


def test_a_host_writes_to_its_state_only(
    write_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All that writes is given a path in the state; units make everything else read-only."""
    for module in ("superlink", "up"):
        monkeypatch.setattr(
            f"acme_fleet.network.hosts.{module}.program", lambda name: f"bin/{name}"
        )
    monkeypatch.setattr("acme_fleet.network.hosts.proxy.nginx", lambda: "nginx")
    path = write_site(role="edge", name="north", upstream="a:1")
    site = Site.from_yaml(path)
    state, read_only = str(site.state), (str(site.keys), str(path), sys.executable)
    named = set(re.findall(r'["\s](/[^"\s;]+)"?[;\s]', configuration(site, _ROOM)))
    named -= {
        each for each in named if each.startswith("/v1/fleet/") or each in ("/busy", "/waiting")
    }
    for service in services(site, path, ["cam-1"]):
        named |= {each for each in service.command if each.startswith("/")}
        named.add(service.environment["FLWR_HOME"])
    outside = {each for each in named if not each.startswith(state)}
    assert all(each.startswith(read_only) for each in outside), outside
    assert len(named - outside) > 8
    # nginx makes these at its start, wherever it was compiled to, unless it is told where.
    for place in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        assert f'{place}_temp_path "{state}/nginx/' in configuration(site, _ROOM)


def test_proxy_is_looked_for_where_it_listens(
    write_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("acme_fleet.network.hosts.superlink.program", lambda name: name)
    monkeypatch.setattr("acme_fleet.network.hosts.proxy.nginx", lambda: "nginx")
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        for address, found in (("127.0.0.2", True), ("127.0.0.3", False), ("0.0.0.0", False)):
            path = write_site(role="cloud", address=address, port=port)
            *_, proxy = services(Site.from_yaml(path), path, [])
            assert proxy.ready is not None
            if found:
                proxy.ready()
            else:
                with pytest.raises(RunError, match=f"port {port}"):
                    proxy.ready()


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin") is None, reason="needs nginx")
def test_nginx_takes_its_configuration(make_keys: Any, tmp_path: Path):
    folder = tmp_path / "a b; %h"
    folder.mkdir()
    make_keys(folder=folder)
    (folder / "fleet.yaml").write_text(yaml.safe_dump(_FLEET))
    (folder / "site.yaml").write_text(yaml.safe_dump(_SITE | {"role": "cloud"}))
    command = proxy_command(Site.from_yaml(folder / "site.yaml"), _ROOM)
    told = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_no_unit_for_a_host_that_would_not_start(
    write_site: Any, make_keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A unit is refused for the same reasons as a start; one reason after the other."""
    site = {"role": "edge", "name": "north", "upstream": "a:1"}

    def told(kind: str = "compose") -> str:
        command = ["up", "edge", "--config", str(path), "--print", kind]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        return " ".join(result.output.split())

    path = write_site(**site | {"name": "norht"})
    assert "did you mean north?" in told()
    path = write_site(**site)
    assert "lacks ca.crt, server.crt, server.key, node.key; `acme keys init` and `acme" in told()
    make_keys()
    assert "no public key of cam-1" in told()
    (tmp_path / "fleet.yaml").write_text("clusters: []\n")
    assert "clusters: List should have at least 1 item" in told()
    away = {"name": "north", "data": "shared.npz", "devices": _FLEET["clusters"][0]["devices"]}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"clusters": [away]}))
    assert f"north: data: there is no file or folder {tmp_path / 'shared.npz'}" in told()
    (tmp_path / "shared.npz").touch()
    certificates.make_node(tmp_path / "cam-1")
    (tmp_path / "keys/peers").mkdir()
    (tmp_path / "cam-1/node.pub").rename(tmp_path / "keys/peers/cam-1.pub")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert "install nginx" in told("systemd")


def test_container_sees_all_that_the_host_reads(write_site: Any, make_keys: Any, tmp_path: Path):
    path = write_site(role="device", name="cam-1", upstream="a:1")
    make_keys()
    names = ["all.npz", "test.npz", "own data.npz", "other.npz", "pi.yaml"]
    for name in names:
        (tmp_path / name).touch()
    constants = {"power_w": 1, "power_per_layer_w": 1, "latency_s": 1, "latency_per_layer_s": 1}
    (tmp_path / "pi.yaml").write_text(yaml.safe_dump({"energy": constants}))
    devices: list[dict[str, Any]] = [
        {"name": "cam-1", "storage": "1 MB", "type": "pi"},
        {"name": "cam-2", "storage": "1 MB", "data": "other.npz"},
    ]
    content = {
        "device_types": {"pi": "pi.yaml"},
        "data": {"source": "arrays", "train": ["all.npz"], "test": "test.npz"},
        "clusters": [{"name": "north", "devices": devices}],
    }
    for own, expected in (
        ("own data.npz", ["own data.npz", "pi.yaml"]),
        (None, ["all.npz", "test.npz", "pi.yaml"]),  # a share of the data set
    ):
        devices[0]["data"] = own
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(content))
        service = _service(path, "device")
        mounts = _mounts(service)
        read = [name for name in names if mounts.get(f"{tmp_path}/{name}") is False]
        assert read == expected
        assert "ports" not in service


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

    def hellos() -> int:
        return sum(line.split() == ["part", "hello"] for line in lines)

    def meddle() -> None:
        wait(lambda: children())
        assert service.process is not None
        service.process.kill()
        wait(lambda: len(children()) == 2 and hellos() == 2)
        os.kill(os.getpid(), signal.SIGINT)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        threading.Thread(target=meddle, daemon=True).start()
        keep_running([service], lines.append)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert hellos() == 2
    assert any("ended with -9; starting it again" in line for line in lines)
    assert len(children()) == 2
    wait(lambda: not any(_alive(pid) for pid in children()))
    assert not any(_alive(pid) for pid in children())


def test_processes_are_stopped_side_by_side(tmp_path: Path):
    """Each ends only when the other has been asked to end as well."""
    code = (
        "import pathlib, signal, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "def end(*_):\n"
        "    mine.touch()\n"
        "    while not other.exists(): time.sleep(0.01)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    paths = [str(tmp_path / "one"), str(tmp_path / "two")]
    services = [
        Service("part", [sys.executable, "-c", code, *order], os.environ)
        for order in (paths, paths[::-1])
    ]
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if sum("ready" in each for each in lines) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        keep_running(services, say)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert [service.process.returncode for service in services if service.process] == [0, 0]


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
