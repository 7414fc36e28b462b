"""Holds a node that asks its SuperLink for work until there is some.

A SuperNode asks, and after "nothing" sleeps for three seconds. The proxy asks here before it passes
such a question on; the relay rings when it has sent a message. So a message is fetched at once, and
a node that has nothing to do asks seven times less often.

The room decides nothing: whoever is unknown or signs wrongly goes on to the SuperLink at once,
which refuses. Without the room nothing is lost but time.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from acme_fleet.failures import own_process
from acme_fleet.network.hosts.superlink import registered

HOLD_S = 20.0
"""Longest wait; a SuperNode takes a server for lost after 30 s."""
_MOST_RINGS = 8
_HEADERS_S = 5.0
_ANSWER = b"HTTP/1.0 204 No Content\r\n\r\n"


@dataclass
class _Place:
    """A place of one node: messages sent that it has not come for, its bell while it waits."""

    rings: int = 0
    bell: asyncio.Event | None = None


class WaitingRoom:
    """The nodes of one SuperLink.

    Args:
        nodes: the file in which the host writes down who is which node.
        hold_s: longest wait, seconds.
    """

    def __init__(self, nodes: Path, hold_s: float = HOLD_S) -> None:
        self._file = nodes
        self._hold_s = hold_s
        self._read_at = 0
        self._keys: dict[str, tuple[int, EllipticCurvePublicKey]] = {}
        self._places: dict[int, _Place] = {}

    def ring(self, node: int) -> None:
        """A message for a node is at the SuperLink."""
        place = self._places.setdefault(node, _Place())
        if place.bell is not None:
            place.bell.set()
            place.bell = None
        else:
            place.rings = min(place.rings + 1, _MOST_RINGS)

    async def wait(self, node: int) -> None:
        """Wait until there is a message for a node, not for ever; its earlier wait ends."""
        place = self._places.setdefault(node, _Place())
        if place.rings:
            place.rings -= 1
            return
        if place.bell is not None:
            place.bell.set()  # of a connection that is gone: a node asks once at a time
        bell = place.bell = asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(bell.wait(), self._hold_s)
        if place.bell is bell:
            place.bell = None

    def node(self, headers: dict[str, str]) -> int | None:
        """The node that signed a question, if it is one of this SuperLink."""
        known = self._known().get(headers.get("flwr-public-key", ""))
        if known is None:
            return None
        node, key = known
        try:
            signature = b64decode(headers.get("flwr-signature", ""), validate=True)
            key.verify(
                signature, headers.get("flwr-timestamp", "").encode(), ECDSA(hashes.SHA256())
            )
        except (InvalidSignature, ValueError):
            return None
        return node

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question of the proxy."""
        try:
            text = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEADERS_S)
            lines = text.decode("latin-1").split("\r\n")[1:]
            pairs = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            if (node := self.node(headers)) is not None:
                await self.wait(node)
            writer.write(_ANSWER)
            await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # of a caller that is gone, or is not the proxy
        finally:
            writer.close()

    def _known(self) -> dict[str, tuple[int, EllipticCurvePublicKey]]:
        """Nodes by their public key as it stands in a header; read again when the file changed."""
        changed = self._file.stat().st_mtime_ns if self._file.exists() else 0
        if changed != self._read_at:
            self._read_at, self._keys = changed, {}
            for entry in registered(self._file).values():
                key = load_ssh_public_key(entry.key.encode())
                assert isinstance(key, EllipticCurvePublicKey)
                text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                self._keys[b64encode(text).decode()] = entry.node, key
        return self._keys


async def open_room(nodes: Path, bell: Path, port: int) -> None:
    """Serve until the process is told to stop.

    Args:
        nodes: the file in which the host writes down who is which node.
        bell: of the socket at which the relay rings.
        port: on the loopback interface, for the proxy.
    """
    room = WaitingRoom(nodes)
    bell.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as rung:
        rung.bind(str(bell))
        bell.chmod(0o600)
        rung.setblocking(False)

        def hear() -> None:
            with suppress(OSError, ValueError):
                room.ring(int(rung.recv(32)))

        asyncio.get_running_loop().add_reader(rung, hear)
        async with await asyncio.start_server(room.serve, "127.0.0.1", port) as server:
            await server.serve_forever()


def main() -> int:
    """The process's own command: NODES BELL PORT."""
    nodes, bell, port = sys.argv[1:]
    return own_process(lambda: asyncio.run(open_room(Path(nodes), Path(bell), int(port))))


if __name__ == "__main__":
    sys.exit(main())
