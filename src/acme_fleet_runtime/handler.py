"""Requests of one connection: checked, read, answered as JSON."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from acme_fleet_runtime.answers import ordered
from acme_fleet_runtime.bounds import Busy
from acme_fleet_runtime.errors import AcmeError, FleetError
from acme_fleet_runtime.images import UnknownFormat, open_image
from acme_fleet_runtime.outside import one_line, reason
from acme_fleet_runtime.runner import Runner
from acme_fleet_runtime.strict import parse_json

if TYPE_CHECKING:
    from acme_fleet_runtime.server import ArtifactServer

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # the rest of Pillow's is not for strangers
_SENT = "PNG, JPEG, WebP, BMP or GIF"
_TYPES = frozenset(
    f"image/{name}" for name in ("png", "jpeg", "jpg", "pjpeg", "webp", "bmp", "x-ms-bmp", "gif")
)
_DRAINED = 2**26  # bytes of a refused body that are read, so that its sender reads the answer
_PIECE = 2**16


class Refused(Exception):
    """A request that gets an error.

    Attributes:
        code: of HTTP.
        headers: of the answer.
    """

    def __init__(self, code: int, told: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(told)
        self.code, self.headers = code, headers or {}


class Handler(BaseHTTPRequestHandler):
    """A thread of its own runs it for each connection."""

    paths: ClassVar[Mapping[str, str]] = {
        "/predict": "POST",
        "/health": "GET",
        "/metrics": "GET",
    }
    """The method of each path."""
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "acme-fleet", ""
    disable_nagle_algorithm = True
    wbufsize = -1
    server: ArtifactServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        """See the base class."""
        super().setup()
        self.connection.settimeout(self.server.limits.idle_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: inputs are private, and ``/metrics`` counts."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class' own errors, as JSON."""
        self.close_connection = True
        self.request_version = self.protocol_version  # of 0.9, answers have no status
        self._send(code, self.error(message or "the request cannot be read", code))

    def error(self, told: str, code: int) -> dict[str, Any]:
        """The content of an answer that is none."""
        return {"error": told}

    def do_GET(self) -> None:
        """Answer a request of any method."""
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = do_GET

    def _answer(self) -> None:
        start = time.perf_counter()
        path = self.path.partition("?")[0]
        code, headers = 200, None
        try:
            content = self._content(path)
        except Refused as refused:
            code, headers = refused.code, refused.headers
            content = self.error(str(refused), code)
        except TimeoutError:
            code, self.close_connection = 408, True
            content = self.error("the request came too slowly", code)
        except OSError:
            raise  # the peer has gone
        except Exception as error:  # noqa: BLE001
            code, self.close_connection = 500, True
            sys.stderr.write(f"error: {type(error).__name__}: {reason(error)}\n")
            content = self.error("a bug of acme-fleet; its server's log has more", code)
        # Before it is sent: who has an answer finds it in the counts.
        known = path if path in self.paths else ""
        self.server.metrics.request(known, code, time.perf_counter() - start)
        if isinstance(content, bytes):
            self._send_bytes(code, content, "text/plain; version=0.0.4")
        elif isinstance(content, dict):
            self._send(code, content, headers)
        else:
            self._send_events(content)

    def _content(self, path: str) -> bytes | dict[str, Any] | Iterator[bytes]:
        length = self._checked_length()
        try:
            self._check_asked(path, length)
        except Refused:
            self._drain(length)
            raise
        server = self.server
        if path == "/health":
            return {"status": "ok"}
        if path == "/metrics":
            return server.metrics.text(server.waiting.taken, server.connections.taken).encode()
        return self.answered(path, length)

    def answered(self, path: str, length: int) -> dict[str, Any] | Iterator[bytes]:
        """The answer to a request that was checked: one document, or events to be streamed.

        Args:
            path: one of :attr:`paths`.
            length: of the body, which is still to be read.

        Raises:
            Refused: with the code.
        """
        return self._predicted(length)

    # --- checks -------------------------------------------------------------------------------

    def _checked_length(self) -> int:
        """Bytes of the body."""
        given = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(411, "send the body in one piece, with its Content-Length")
        if not given:
            if self.command in ("POST", "PUT", "PATCH"):
                self.close_connection = True
                raise Refused(411, "Content-Length is missing")
            return 0
        if len(given) > 1 or not given[0].isascii() or not given[0].isdigit():
            self.close_connection = True
            raise Refused(400, "Content-Length is no number")
        return int(given[0][:18])

    def _check_asked(self, path: str, length: int) -> None:
        server = self.server
        if server.token is None:
            self._check_host()
        elif path != "/health":
            kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
            right = hmac.compare_digest(token.strip().encode(), server.token.encode())
            if kind.lower() != "bearer" or not right:
                raise Refused(
                    401,
                    "send the header Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
        if path not in self.paths:
            raise Refused(404, f"there is no such path; known: {', '.join(self.paths)}")
        if self.command != self.paths[path]:
            allowed = self.paths[path]
            raise Refused(405, f"{path} takes {allowed} alone", {"Allow": allowed})
        if length > server.limits.body_bytes:
            raise Refused(
                413,
                f"the body has {length:,} bytes, at most {server.limits.body_bytes:,} are taken",
            )
        if self.paths[path] != "POST" and length:
            raise Refused(400, f"{path} takes no body")

    def _check_host(self) -> None:
        """Without a token, a browser's page must not get here by a name of its own."""
        name = (self.headers.get("Host") or "localhost").strip().lower()
        name = name.partition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
        if not is_loopback(name):
            raise Refused(403, "without --token only the names of this machine are answered")

    def _drain(self, length: int) -> None:
        self.close_connection = self.close_connection or length > _DRAINED
        left = min(length, _DRAINED)
        while left > 0 and (piece := self.rfile.read(min(left, _PIECE))):
            left -= len(piece)

    # --- predictions --------------------------------------------------------------------------

    @property
    def _runner(self) -> Runner:
        runner = self.server.runner
        assert isinstance(runner, Runner)  # by the server
        return runner

    def _predicted(self, length: int) -> dict[str, Any]:
        server = self.server
        try:
            with server.bodies.having(length):
                items, top = self._items(self.body(length))
                # Before they are made ready: a few bytes can become a large image.
                with server.waiting.having(len(items)):
                    assert server.batcher is not None
                    answers = server.batcher.ask([self._prepared(*item) for item in items])
        except Busy:
            told = "too much is waiting; ask again"
            raise Refused(503, told, {"Retry-After": "1"}) from None
        except FleetError as error:
            raise Refused(422, one_line(str(error), 500)) from error
        except AcmeError as error:
            raise Refused(500, one_line(str(error), 500)) from error
        return {"predictions": [self._told(row, top) for row in answers]}

    def body(self, length: int) -> bytes:
        """Read the body.

        Raises:
            Refused: if it is shorter than that.
            TimeoutError: if it comes too slowly.
        """
        pieces, left = [], length
        end = time.monotonic() + self.server.limits.body_s
        while left > 0:
            piece = self.rfile.read1(min(left, _PIECE))
            if not piece:
                self.close_connection = True
                raise Refused(400, "the body is shorter than its Content-Length")
            if time.monotonic() > end:
                raise TimeoutError
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _told(self, row: Sequence[float], top: int | None) -> dict[str, Any]:
        best = list(ordered(self._runner.labels, row).items())[:top]
        return {"class": best[0][0], "probability": best[0][1], "probabilities": dict(best)}

    def _items(self, body: bytes) -> tuple[list[tuple[str | bytes, str]], int | None]:
        """The inputs of a request with their places in it, and the number of classes to tell."""
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if kind not in _TYPES and kind != "application/json":
            images = f"send {_SENT}" if kind.startswith("image/") else ""
            told = "send application/json, or an image as image/png or image/jpeg"
            if not self._runner.takes_images:
                told = 'send application/json: {"texts": ["…"]}'
            raise Refused(415, images or told)
        if not body:
            raise Refused(400, "the body is empty")
        if kind in _TYPES:
            return [(body, "the body")], None
        document = self.json(body)
        wanted = "images" if self._runner.takes_images else "texts"
        if not isinstance(document, dict) or not {wanted} <= document.keys() <= {wanted, "top"}:
            told = f'send {{"{wanted}": […]}}, and nothing beside it but "top", classes to tell'
            raise Refused(422, told)
        top, items = document.get("top"), document[wanted]
        if top is not None and (type(top) is not int or top < 1):
            raise Refused(422, "top must be a whole number from 1")
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            content = "Base64 of an image file" if wanted == "images" else "a text"
            raise Refused(422, f"{wanted} must be a list, each entry {content}")
        most = self.server.limits.samples
        if not 0 < len(items) <= most:
            raise Refused(422, f"{wanted} has {len(items)} entries; 1 to {most} are taken")
        return [(item, f"{wanted}.{number}") for number, item in enumerate(items)], top

    def json(self, body: bytes) -> Any:
        """The document that a body is.

        Raises:
            Refused: if it is none.
        """
        try:
            return parse_json(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is no JSON: {reason(error)}") from error

    def _prepared(self, item: str | bytes, place: str) -> np.ndarray:
        runner, limits = self._runner, self.server.limits
        if isinstance(item, str) and not runner.takes_images:
            if len(item) > limits.characters:
                raise FleetError(f"{place} has more than {limits.characters:,} characters")
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise FleetError(f"{place} is no Unicode text") from error
            with self.server.preparing:
                return runner.tokens(item)
        try:
            content = base64.b64decode(item, validate=True) if isinstance(item, str) else item
        except (binascii.Error, ValueError) as error:
            raise FleetError(f"{place} is no Base64: {reason(error)}") from error
        with self.server.preparing:
            try:
                image = open_image(content, place, limits.pixels, _FORMATS)
            except UnknownFormat as error:
                raise FleetError(f"cannot read {place} as an image: send {_SENT}") from error
            return runner.pixels(image)

    # --- answers ------------------------------------------------------------------------------

    def _send(self, code: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(content, allow_nan=False).encode() + b"\n"
        self._send_bytes(code, body, "application/json", headers)

    def _send_events(self, events: Iterator[bytes]) -> None:
        """Events as they come, each at once; a peer that goes away ends them."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with closing(cast("Generator[bytes]", events)):
            for event in events:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _send_bytes(
        self, code: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


def is_loopback(host: str) -> bool:
    """True for names and addresses of this machine that no other can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
