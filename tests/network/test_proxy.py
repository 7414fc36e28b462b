"""nginx as hosts start it, before a stand-in for the SuperLink: who is let in, and how much of it.

Nothing of Flower runs. Each refusal stands beside a request that is let in at the same moment, so
that a proxy which refuses everything fails as well.
"""

from __future__ import annotations

import http.client
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from acme_fleet.network.hosts import certificates, keygen, proxy
from acme_fleet.network.hosts.site import Site
from acme_fleet.network.hosts.tunnel import prepare
from acme_research.frame.loopback import descendants, free_ports, wait_for

_PATH = "/v1/fleet/push-object"
_LARGE = 2**24


class _Answers(BaseHTTPRequestHandler):
    """A stand-in for the SuperLink: takes what is sent, and answers with as much as is asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Wait"):
            self.server.release.wait(60)  # pyright: ignore[reportAttributeAccessIssue]
        size = int(self.headers.get("Want", 5))
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        try:
            for _ in range(0, size, 2**16):
                self.wfile.write(bytes(min(size, 2**16)))
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class _SuperLink(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, keys: Path) -> None:
        super().__init__(("127.0.0.1", port), _Answers)
        self.release = threading.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / certificates.SERVER, keys / certificates.SERVER_KEY)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # connections that the proxy has cut


@dataclass
class Proxied:
    """A host's proxy, and what is behind it."""

    site: Site
    keys: Path
    nginx: subprocess.Popen[bytes]
    behind: _SuperLink

    def context(self, shown: Path | None = None) -> ssl.SSLContext:
        """TLS of one who dials, with the certificate and key in a folder or without any."""
        context = ssl.create_default_context(cafile=str(self.keys / certificates.CA))
        if shown is not None:
            names = (certificates.NODE, certificates.NODE_KEY)
            certificate, key = (
                names if (shown / "node.crt").exists() else ("server.crt", "server.key")
            )
            context.load_cert_chain(shown / certificate, shown / key)
        return context

    def dial(self, shown: Path | None = None, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """A connection on which nothing has been sent."""
        address = ("127.0.0.1", self.site.port)
        plain = socket.create_connection(address, timeout=30, source_address=(source, 0))
        return self.context(shown).wrap_socket(plain, server_hostname="127.0.0.1")

    def status(self, shown: Path | None = None, source: str = "127.0.0.1") -> int:
        """The answer to a small request on a connection of its own; 0 if it was cut."""
        try:
            with self.dial(shown, source) as line:
                line.sendall(_request())
                return _status(line)
        except (ssl.SSLError, ConnectionError):
            return 0

    def reload(self) -> None:
        """As ``acme up`` when files have changed; returns once no old worker takes connections."""
        before = set(descendants(self.nginx.pid)[1:])
        self.nginx.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(set(descendants(self.nginx.pid)[1:]) - before), 30)


def _request(extra: str = "", body: bytes = b"x") -> bytes:
    head = f"POST {_PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def _status(line: ssl.SSLSocket) -> int:
    response = http.client.HTTPResponse(line)
    response.begin()
    return response.status


def _client(keys: Path, name: str, authority: Path | None = None) -> Path:
    """A folder with a node's certificate, and its key as Python's ssl reads it."""
    folder = keys / name
    certificates.make_node(folder)
    certificates.make_client(authority or keys, folder, name)
    shown = keys / f"{name}-shown"
    shown.mkdir()
    shutil.copy(folder / certificates.NODE, shown)
    certificates.write_client_key(folder, shown)
    return shown


@contextmanager
def _proxied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, mutual: bool, **seconds: int
) -> Iterator[Proxied]:
    """A proxy of the cloud with some of its time limits changed, and its keys."""
    keygen.init_keys(folder / "keys", ["cloud=127.0.0.1"], None)
    keys = folder / "keys" / "cloud"
    for name in (certificates.CA, certificates.REVOKED):
        shutil.copy(folder / "keys" / name, keys)
    port, local_port, waiting_port = free_ports(3)
    (folder / "fleet.yaml").write_text("")
    site = Site(
        role="cloud",
        fleet=folder / "fleet.yaml",
        state=folder / "state",
        keys=keys,
        address="127.0.0.1",
        port=port,
        local_port=local_port,
        mutual_tls=mutual,
    )
    text = proxy._TEMPLATE
    for name, value in seconds.items():
        text, changed = re.subn(rf"{name} \d+s;", f"{name} {value}s;", text)
        assert changed == 1, name
    monkeypatch.setattr(proxy, "_TEMPLATE", text)
    behind = _SuperLink(local_port, keys)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    with (folder / "nginx.log").open("wb") as log:
        nginx = subprocess.Popen(proxy.proxy_command(site, waiting_port), stderr=log)
    found = Proxied(site, keys, nginx, behind)
    try:
        wait_for(lambda: _listens(port), 30)
        yield found
    finally:
        behind.release.set()
        nginx.terminate()
        nginx.wait(30)
        behind.shutdown()
        behind.server_close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- certificates -------------------------------------------------------------------------------


def test_mutual_tls_lets_in_those_with_a_certificate_of_the_authority_that_is_not_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with _proxied(tmp_path, monkeypatch, mutual=True) as host:
        keys, foreign = tmp_path / "keys", tmp_path / "foreign"
        good, other = _client(keys, "cam-1"), _client(keys, "cam-2")
        certificates.make_authority(foreign)
        strange = _client(foreign, "cam-1", foreign)
        assert host.status(good) == 200
        assert host.status(other) == 200
        assert host.status() == 400, "without a certificate"
        assert host.status(strange) == 400, "of another authority"
        assert host.status(host.keys) == 400, "a server's certificate is no node's"

        keygen.revoke(keys, "cam-2")
        assert host.status(other) == 200, "not yet: the proxy has not read the list again"
        shutil.copy(keys / certificates.REVOKED, host.keys)
        with host.dial(good) as old:  # a connection that is there all the time
            old.sendall(_request())
            assert _status(old) == 200
            host.reload()
            wait_for(lambda: host.status(other) == 400, 30)
        assert host.status(good) == 200
        keygen.revoke(keys, "cam-2")  # twice is once
        certificates.check_revoked(keys, "a test")


def test_servers_certificate_is_replaced_while_a_request_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with _proxied(tmp_path, monkeypatch, mutual=False) as host:
        keys = tmp_path / "keys"
        with host.dial() as line:
            before = line.getpeercert(binary_form=True)
            line.sendall(_request("Wait: yes\r\n"))
            for name in (certificates.SERVER, certificates.SERVER_KEY):
                (keys / "cloud" / name).unlink()
            (keys / "cloud" / certificates.SERVER).write_text("half a file")
            host.nginx.send_signal(signal.SIGHUP)  # refused: the old certificate stays
            assert host.status() == 200
            (keys / "cloud" / certificates.SERVER).unlink()
            keygen.init_keys(keys, ["cloud=127.0.0.1"], None)
            host.reload()

            def shown() -> bytes | None:
                with host.dial() as new:
                    return new.getpeercert(binary_form=True)

            wait_for(lambda: shown() != before, 30)
            host.behind.release.set()
            assert _status(line) == 200, "the request that was under way"
        assert host.status() == 200


def test_a_host_shows_its_certificate_for_a_program_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with _proxied(tmp_path, monkeypatch, mutual=True) as host:
        keys = tmp_path / "keys"
        certificates.make_node(keys / "cam-1")
        keygen.certify(keys, "cam-1")
        shutil.copy(keys / certificates.CA, keys / "cam-1")
        (port,) = free_ports(1)
        folder = tmp_path / "tunnel"
        prepare(keys / "cam-1", folder)
        assert {p.stat().st_mode & 0o077 for p in folder.glob("*.key")} == {0}
        command = [sys.executable, "-m", "acme_fleet.network.hosts.tunnel", str(port)]
        command += [f"127.0.0.1:{host.site.port}", str(keys / "cam-1"), str(folder)]
        with (tmp_path / "tunnel.log").open("wb") as log:
            tunnel = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: _listens(port), 30)
            context = ssl.create_default_context(cafile=str(folder / certificates.SERVER))

            def status(path: str = _PATH) -> int:
                line = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
                line.request("POST", path, b"x")
                found = line.getresponse().status
                line.close()
                return found

            assert host.status() == 400, "without the way through it"
            assert status() == 200
            assert status("/v1/control/start-run") == 404
            keygen.revoke(keys, "cam-1")
            shutil.copy(keys / certificates.REVOKED, host.keys)
            host.reload()
            wait_for(lambda: status() == 400, 60)
            # A server of another authority gets nothing: no request, and no certificate's use.
            certificates.make_authority(tmp_path / "foreign")
            shutil.copy(tmp_path / "foreign" / certificates.CA, keys / "cam-1")
            with pytest.raises(http.client.RemoteDisconnected):
                status()
            assert "certificate verify failed" in (tmp_path / "tunnel.log").read_text()
        finally:
            tunnel.terminate()
            tunnel.wait(30)


# --- too much, and too slow -----------------------------------------------------------------------


def test_one_address_has_so_many_requests_under_way_and_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(proxy, "CONNECTIONS", 8)
    with _proxied(tmp_path, monkeypatch, mutual=False) as host, ExitStack() as held:
        lines = [held.enter_context(host.dial(source="127.0.0.2")) for _ in range(8)]
        for line in lines:
            line.sendall(_request("Wait: yes\r\n"))
        wait_for(lambda: host.status(source="127.0.0.2") == 503, 30)
        assert host.status(source="127.0.0.3") == 200
        host.behind.release.set()
        assert [_status(line) for line in lines] == [200] * 8
        wait_for(lambda: host.status(source="127.0.0.2") == 200, 30)


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST /v1/fleet/push-object HTTP/1.1\r\nHost", _request()[:-1]],
    ids=["nothing", "half a header", "half a body"],
)
def test_who_stops_sending_is_cut_off(
    begun: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = {"client_header_timeout": 1, "client_body_timeout": 1}
    with _proxied(tmp_path, monkeypatch, mutual=False, **limits) as host, host.dial() as line:
        line.sendall(begun)
        assert host.status() == 200
        try:
            rest = line.recv(2**16)  # the dial's own limit of 30 s would end this with an error
        except (ConnectionError, ssl.SSLError):
            rest = b""
        assert rest == b"" or b" 408 " in rest


def test_a_header_that_comes_byte_by_byte_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = {"client_header_timeout": 2}
    with _proxied(tmp_path, monkeypatch, mutual=False, **limits) as host, host.dial() as line:
        sent, header = 0, _request("X: " + "x" * 300 + "\r\n")
        with suppress(ConnectionError, ssl.SSLError):
            for byte in header:
                line.sendall(bytes([byte]))
                sent += 1
                time.sleep(0.1)
        assert 10 < sent < len(header)
        assert host.status() == 200


def test_who_does_not_read_is_cut_off_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    readers = 8
    with (
        _proxied(tmp_path, monkeypatch, mutual=False, send_timeout=2) as host,
        ExitStack() as held,
    ):
        before = _memory(host)
        lines = [held.enter_context(host.dial()) for _ in range(readers)]
        for line in lines:
            line.sendall(_request(f"Want: {_LARGE}\r\n"))
        time.sleep(1)
        assert _memory(host) - before < _LARGE, "each has asked for as much"
        assert host.status() == 200
        time.sleep(3)
        for line in lines:
            assert _read_all(line) < _LARGE
        with host.dial() as line:  # who reads gets all of it
            line.sendall(_request(f"Want: {_LARGE}\r\n"))
            assert _read_all(line, _LARGE) > _LARGE


def _read_all(line: ssl.SSLSocket, at_least: float = float("inf")) -> int:
    """Bytes that come until the connection ends, or so many are there."""
    size = 0
    try:
        while size <= at_least and (data := line.recv(2**16)):
            size += len(data)
    except (ConnectionError, ssl.SSLError):
        pass
    return size


def _memory(host: Proxied) -> int:
    """Resident bytes of nginx and its worker."""
    total = 0
    for pid in descendants(host.nginx.pid):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total
