"""A header and a payload over a local socket; without torch, for Flower's short processes."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from acme_fleet.errors import ProtocolError
from acme_fleet.outside import reading

BELL = "bell.sock"
"""A host's socket at which the relay rings, beside the relay's own."""
MAX_HEADER, MAX_PAYLOAD = 2**20, 2**31 - 1
_PIECE = 2**20
_LENGTHS = struct.Struct(">IQ")

Header = dict[str, Any]


def send_frame(connection: socket.socket, header: Header, payload: bytes = b"") -> None:
    """Send one frame."""
    text = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(len(text), len(payload)) + text)
    connection.sendall(payload)


def receive_frame(connection: socket.socket) -> tuple[Header, bytes]:
    """Wait for one frame.

    Raises:
        ConnectionError: if the other side closed the connection.
        ProtocolError: if the frame exceeds the limits or its header is not a JSON object.
    """
    header_size, payload_size = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
        raise ProtocolError(f"a frame of {header_size} + {payload_size} bytes was refused")
    header = parse_header(bytes(_exactly(connection, header_size)))
    return header, bytes(_exactly(connection, payload_size))


def parse_header(text: bytes | str) -> Header:
    """Read a header.

    Raises:
        ProtocolError: if it is not a JSON object, or too large.
    """
    with reading("a malformed header was refused", ProtocolError):
        header = json.loads(text) if len(text) <= MAX_HEADER else None
    if not isinstance(header, dict):
        raise ProtocolError("a header that is no JSON object, or too large, was refused")
    return header


def ring(bell: Path, node: int) -> None:
    """Say that a message for a node is at the SuperLink, if there is somebody who listens."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        caller.setblocking(False)
        caller.sendto(str(node).encode(), str(bell))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    """So many bytes; memory grows as they arrive, and not with what was announced."""
    data = bytearray()
    while len(data) < size:
        received = connection.recv(min(size - len(data), _PIECE))
        if not received:
            raise ConnectionError("the connection was closed")
        data += received
    return data
