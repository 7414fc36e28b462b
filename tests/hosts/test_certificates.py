"""Certificates of nodes, keys that are revoked, and files that change while a host is up."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from acme_fleet.cli import app, hosts
from acme_fleet.errors import FleetError
from acme_fleet.links.base import Failure
from acme_fleet.messages.edge_device import RoundReport, RoundStart
from acme_fleet.network.flower.channel import Channel
from acme_fleet.network.flower.link import FlowerLink, RunIdentity
from acme_fleet.network.hosts import certificates, keygen
from acme_fleet.network.hosts.supervisor import Service, keep_running
from acme_fleet.runs.journal import Journal


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "find_spec", lambda _: True)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """An authority's folder, with the public key of cam-1."""
    keygen.init_keys(tmp_path, ["north=127.0.0.1"], None)
    keygen.device_key(tmp_path, "cam-1", None)
    return tmp_path


def _told(*command: str) -> tuple[int, str]:
    told = CliRunner().invoke(app, ["keys", *command])
    return told.exit_code, " ".join(told.output.split())


def test_a_nodes_certificate_is_of_its_own_key_and_for_those_who_dial(keys: Path):
    code, told = _told("certify", "cam-1", "--keys", str(keys))
    assert code == 0, told
    node = keys / "cam-1"
    (node / certificates.CA).write_bytes((keys / certificates.CA).read_bytes())
    certificates.check_client(node, "a test")
    certificate = x509.load_pem_x509_certificate((node / certificates.NODE).read_bytes())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert _told("certify", "cam-1", "--keys", str(keys))[0] == 2, "nothing is overwritten"
    for name in (certificates.NODE_KEY, certificates.NODE_PUBLIC):
        (node / name).unlink()
    certificates.make_node(node)
    with pytest.raises(FleetError, match=r"node.crt does not belong to the node.key beside it"):
        certificates.check_client(node, "a test")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["certify", "cam-2"], "no usable public key in"),
        (["certify", "../x"], "'../x' is no name of a fleet file"),
        (["revoke", "cam-2"], "has neither peers/cam-2.pub, which its server has"),
        (["revoke", "../x"], "'../x' is no name of a fleet file"),
    ],
)
def test_what_cannot_be_certified_or_revoked_is_said(command: list[str], message: str, keys: Path):
    code, told = _told(*command, "--keys", str(keys))
    assert (code, message in told) == (2, True), told


def test_certifying_needs_the_authority(keys: Path):
    (keys / certificates.CA_KEY).unlink()
    code, told = _told("certify", "cam-1", "--keys", str(keys))
    assert (code, "no usable certificate authority in" in told) == (2, True), told


def test_what_is_revoked_is_listed_once_and_the_list_is_the_authoritys(keys: Path):
    keygen.certify(keys, "cam-1")
    keygen.device_key(keys, "cam-2", None)
    keygen.certify(keys, "cam-2")
    for name in ("cam-1", "cam-2", "cam-1"):
        keygen.revoke(keys, name)
    crl = x509.load_pem_x509_crl((keys / certificates.REVOKED).read_bytes())
    own = [
        x509.load_pem_x509_certificate((keys / name / certificates.NODE).read_bytes())
        for name in ("cam-1", "cam-2")
    ]
    assert [entry.serial_number for entry in crl] == [each.serial_number for each in own]
    certificates.check_revoked(keys, "a test")
    certificates.make_authority(keys / "other")
    list_of_another = (keys / "other" / certificates.REVOKED).read_bytes()
    (keys / certificates.REVOKED).write_bytes(list_of_another)
    with pytest.raises(FleetError, match=r"revoked.crl does not belong to the ca.crt"):
        certificates.check_revoked(keys, "a test")
    (keys / certificates.REVOKED).write_text("half a list")
    with pytest.raises(FleetError, match=r"cannot use .*revoked.crl"):
        certificates.check_revoked(keys, "a test")


def test_a_revoked_key_is_no_key_and_a_missing_one_is_still_an_error(keys: Path):
    north = keys / "north"
    (north / certificates.PEERS).mkdir()
    public = (keys / "cam-1" / certificates.NODE_PUBLIC).read_bytes()
    (north / certificates.PEERS / "cam-1.pub").write_bytes(public)
    assert list(certificates.public_keys(north, ["cam-1"])) == ["cam-1"]
    code, told = _told("revoke", "cam-1", "--keys", str(north))
    assert (code, "is let in no more" in told) == (0, True), told
    assert list(certificates.public_keys(north, ["cam-1"])) == []
    certificates.shut_out(north, "cam-1").unlink()
    with pytest.raises(FleetError, match="no public key of cam-1"):
        certificates.public_keys(north, ["cam-1"])


def test_a_peer_whose_key_was_revoked_is_a_failure_at_once(tmp_path: Path):
    channel = Channel(tmp_path / "relay.sock", lambda: None)
    try:
        journal, identity = Journal(tmp_path / "events.jsonl"), RunIdentity("0" * 32, "0" * 64)
        link = FlowerLink("north", channel, {"cam-1": None}, identity, journal, "device")
        answer = link.call({"cam-1": RoundStart(round=0)}, RoundReport, timeout_s=60)["cam-1"]
    finally:
        channel.close()
    assert answer == Failure("its key was revoked")


def _during(services: list[Service], step: Callable[[], None]) -> list[str]:
    """Keep services running while a step is done; what was said."""
    lines: list[str] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def meddle() -> None:
        try:
            _wait(lambda: "up" in lines)
            time.sleep(1.2)  # it has looked at the files as they are
            step()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        threading.Thread(target=meddle, daemon=True).start()
        keep_running(services, lines.append)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return lines


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_change_of_files_is_passed_on_once_and_an_error_in_it_ends_nothing(tmp_path: Path):
    """One process reads its files again at SIGHUP; for the other a function is called."""
    code = (
        "import pathlib, signal, time\n"
        f"told = pathlib.Path({str(tmp_path / 'hup')!r})\n"
        "signal.signal(signal.SIGHUP, lambda *_: told.touch())\n"
        "while True: time.sleep(0.1)\n"
    )
    command, calls = [sys.executable, "-c", code], []
    certificate, peers = tmp_path / "server.crt", tmp_path / "peers"
    certificate.write_text("old")
    peers.mkdir()

    def changed() -> None:
        calls.append(sorted(path.name for path in peers.iterdir()))
        raise FleetError("there is no such key")

    proxy = Service("proxy", command, os.environ, watched=lambda: [certificate])
    link = Service(
        "link", command, os.environ, watched=lambda: sorted(peers.iterdir()), changed=changed
    )

    def step() -> None:
        assert not (tmp_path / "hup").exists(), "nothing has changed yet"
        certificate.write_text("new")
        _wait(lambda: (tmp_path / "hup").exists())
        (peers / "cam-1.pub").write_text("a key")
        _wait(lambda: bool(calls))
        time.sleep(1.2)

    lines = _during([proxy, link], step)
    assert (tmp_path / "hup").exists()
    assert calls == [["cam-1.pub"]]
    assert "link       cannot: there is no such key" in lines
    assert not any("ended with" in line for line in lines)
