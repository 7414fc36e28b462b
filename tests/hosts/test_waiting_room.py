"""The room where nodes wait for work: who waits how long, and who does not."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.waiting_room import WaitingRoom
from acme_fleet.runs.sealed import write_sealed_json

_LONG_S = 30.0


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """Two registered nodes, 7 and 8, whose keys are in folders of their numbers."""
    entries = {}
    for number in (7, 8):
        certificates.make_node(tmp_path / str(number))
        key = (tmp_path / str(number) / certificates.NODE_PUBLIC).read_text()
        entries[f"cam-{number}"] = {"node": number, "key": key}
    write_sealed_json(tmp_path / "nodes.json", entries)
    return tmp_path / "nodes.json"


def _signed(folder: Path) -> dict[str, str]:
    """The headers by which Flower's SuperNode is known."""
    key = load_ssh_private_key((folder / certificates.NODE_KEY).read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(b"2026-01-01", ECDSA(hashes.SHA256()))
    told = {"public-key": public, "signature": signature}
    headers = {f"flwr-{name}": b64encode(value).decode() for name, value in told.items()}
    return {**headers, "flwr-timestamp": "2026-01-01"}


async def _ask(room: WaitingRoom, headers: dict[str, str]) -> bytes:
    """The room's answer to what the proxy asks."""
    async with await asyncio.start_server(room.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET / HTTP/1.0\r\n{lines}\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer


def _during(step: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(step(), 10))


def test_a_node_is_known_by_its_signature_alone(nodes: Path):
    room, headers = WaitingRoom(nodes), _signed(nodes.parent / "7")
    assert room.node(headers) == 7
    assert room.node({**headers, "flwr-timestamp": "2026-01-02"}) is None, "another was signed"
    assert room.node(headers | {"flwr-signature": "!"}) is None
    other = _signed(nodes.parent / "8")
    assert room.node(headers | {"flwr-public-key": other["flwr-public-key"]}) is None
    assert room.node({}) is None
    write_sealed_json(nodes, {})  # a node that was let out
    assert room.node(headers) is None


def test_a_node_waits_until_a_message_for_it_is_there(nodes: Path):
    async def step() -> None:
        room = WaitingRoom(nodes, hold_s=_LONG_S)
        asked = asyncio.create_task(_ask(room, _signed(nodes.parent / "7")))
        room.ring(8)
        await asyncio.sleep(0.3)
        assert not asked.done(), "the bell was another node's"
        room.ring(7)
        assert (await asked).startswith(b"HTTP/1.0 204")

    _during(step)


def test_a_message_that_was_there_first_is_not_waited_for_and_counts_once(nodes: Path):
    async def step() -> None:
        room = WaitingRoom(nodes, hold_s=0.2)
        room.ring(7)
        begun = time.monotonic()
        await asyncio.wait_for(room.wait(7), 0.1)
        await room.wait(7)  # nothing is left: this one takes the whole time
        assert time.monotonic() - begun >= 0.2

    _during(step)


def test_a_second_wait_of_a_node_ends_the_first_whose_connection_is_gone(nodes: Path):
    async def step() -> None:
        room = WaitingRoom(nodes, hold_s=_LONG_S)
        first = asyncio.create_task(room.wait(7))
        await asyncio.sleep(0)
        second = asyncio.create_task(room.wait(7))
        await first
        assert not second.done()
        room.ring(7)
        await second

    _during(step)


@pytest.mark.parametrize("headers", [{}, {"flwr-public-key": "x" * 200}])
def test_who_is_unknown_goes_on_at_once_to_who_decides(headers: dict[str, str], nodes: Path):
    answer = _during(lambda: _ask(WaitingRoom(nodes, hold_s=_LONG_S), headers))
    assert answer.startswith(b"HTTP/1.0 204")


def test_bytes_that_are_no_question_do_not_end_the_room(nodes: Path):
    async def step() -> None:
        room = WaitingRoom(nodes, hold_s=_LONG_S)
        async with await asyncio.start_server(room.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            for rubbish in (b"", b"\xff" * 10, b"x" * 2**17):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(rubbish)
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
        assert (await _ask(room, {})).startswith(b"HTTP/1.0 204")

    _during(step)
