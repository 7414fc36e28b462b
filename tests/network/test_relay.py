"""The two halves of the application inside Flower, without a SuperLink."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import acme_fleet
from acme_fleet.network.flower.frames import receive_frame, send_frame
from acme_fleet.network.flower.soon import SOON_S, look_again_soon

# Flower's own imports warn about click; ours do not come by here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_NOBODY = 8
_APP = Path(acme_fleet.__file__).parent / "network" / "flower" / "app"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The application's modules, as Flower imports them."""
    monkeypatch.syspath_prepend(str(_APP))
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    for name in ("_task_id", "_run_id", "_node_id"):  # what Flower sets before it loads the modules
        monkeypatch.setattr(identity, name, 1)
    return SimpleNamespace(**{n: importlib.import_module(n) for n in ("record", "relay", "shim")})


class _Grid:
    """Keeps what is pushed; gives what a function answers."""

    def __init__(self, answer: Any) -> None:
        self._answer, self._replies = answer, []
        self.pushed: list[Any] = []

    def push_messages(self, messages: Any) -> list[str | None]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
            self.pushed.append(message)
            if message.metadata.dst_node_id != _NOBODY:
                self._replies += self._answer(message)
        return [
            m.metadata.message_id if m.metadata.dst_node_id != _NOBODY else None for m in messages
        ]

    def pull_messages(self, ids: Any) -> list[Any]:
        replies, self._replies = self._replies, []
        return replies


def _talk(parts: SimpleNamespace, answer: Any, headers: list[dict[str, Any]]) -> list[Any]:
    """The answers to a role's questions within a second."""
    ours, theirs = socket.socketpair()
    grid, frames = _Grid(answer), []
    thread = threading.Thread(target=parts.relay._serve, args=(theirs, grid, Path("no bell")))
    with ours, theirs:
        thread.start()
        for header in headers:
            send_frame(ours, header, b"payload")
        ours.settimeout(1.0)
        try:
            while True:
                frames.append(receive_frame(ours))
        except TimeoutError:
            send_frame(ours, {"stop": True})
        thread.join(timeout=10)
    assert not thread.is_alive()
    return frames


def _header(number: int) -> dict[str, Any]:
    return {"node": 7, "id": f"id{number}", "patience": 60.0, "wait": 1.0}


def test_relay_passes_frames_and_names_what_failed(parts: SimpleNamespace):
    from flwr.app import Error, Message, RecordDict

    def answer(message: Any) -> list[Any]:
        header, payload = parts.record.unpack(message.content)
        assert payload == b"payload"
        assert "node" not in header
        content = {
            "id0": parts.record.pack({"id": "id0", "news": {}}, b"answer"),
            "id1": parts.record.pack({"id": "another's"}, b"forged"),
            "id2": RecordDict(),
        }
        if header["id"] == "id3":
            return [Message(Error(code=3, reason="the node is offline"), reply_to=message)]
        return [Message(content[header["id"]], reply_to=message)]

    frames = _talk(parts, answer, [_header(n) for n in range(4)])
    assert ({"id": "id0", "news": {}}, b"answer") in frames
    assert ({"id": "id3", "error": "the node is offline", "passing": True}, b"") in frames
    (malformed,) = [header for header, _ in frames if header["id"] == "id2"]
    assert "malformed" in malformed["error"]
    assert len(frames) == 3, "an answer that does not repeat the question's id is dropped"


def test_relay_says_at_once_that_a_node_is_not_known(parts: SimpleNamespace):
    from flwr.app import Message

    def answer(message: Any) -> list[Any]:
        header, _ = parts.record.unpack(message.content)
        return [Message(parts.record.pack({"id": header["id"]}, b"answer"), reply_to=message)]

    headers = [_header(0), {**_header(1), "node": _NOBODY}, _header(2)]
    frames = {header["id"]: (header, payload) for header, payload in _talk(parts, answer, headers)}
    assert frames["id0"] == ({"id": "id0"}, b"answer")
    assert frames["id2"] == ({"id": "id2"}, b"answer")
    refused, payload = frames["id1"]
    assert "no such node" in refused["error"]
    assert refused["passing"]
    assert not payload


@pytest.mark.parametrize("name", ["pull_objects", "pull_and_inflate_object_from_tree"])
def test_parts_that_are_not_there_yet_are_looked_for_again_soon(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """In the constants of Flower's own functions; another version of it may have none."""
    inflatable = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    pulling = getattr(inflatable, name)
    known = dict(pulling.__kwdefaults__)
    monkeypatch.setattr(pulling, "__kwdefaults__", dict(known))
    assert known["initial_backoff"] >= SOON_S
    look_again_soon()
    assert pulling.__kwdefaults__ == {**known, "initial_backoff": SOON_S}


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_payloads_of_any_size_arrive_and_small_ones_in_few_parts(size: int, parts: SimpleNamespace):
    inflatable = importlib.import_module("flwr.supercore.inflatable.inflatable_object")
    payload = bytes(n % 251 for n in range(size))
    content = parts.record.pack({"id": "id0"}, payload)
    assert parts.record.unpack(content) == ({"id": "id0"}, payload)
    small = size <= 2**20
    assert (len(inflatable.get_all_nested_objects(content)) <= 2) == small


def test_shim_asks_the_role_and_repeats_the_id(parts: SimpleNamespace, tmp_path: Path):
    from flwr.app import Context, Message, RecordDict

    def ask() -> tuple[dict[str, Any], bytes]:
        content = parts.record.pack({"id": "id0", "wait": 1.0}, b"question")
        context = Context(1, 7, {"socket": str(tmp_path / "role.sock")}, RecordDict(), {})
        question = Message(content, 7, "query")
        question.metadata.__dict__["_message_id"] = "m0"
        return parts.record.unpack(parts.shim.query(question, context).content)

    header, payload = ask()
    assert header["id"] == "id0"
    assert header["passing"]
    assert not payload
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "role.sock"))
        listener.listen()

        def role() -> None:
            connection, _ = listener.accept()
            with connection:
                _, payload = receive_frame(connection)
                send_frame(connection, {"id": "not this", "news": {}}, payload[::-1])

        threading.Thread(target=role, daemon=True).start()
        assert ask() == ({"id": "id0", "news": {}}, b"noitseuq")


def test_nothing_heavy_is_loaded_for_a_message():
    code = (
        f"import sys; sys.path.insert(0, {str(_APP)!r}); import shim, relay\n"
        "print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    )
    begun = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]", f"after {time.monotonic() - begun:.1f} s"
