"""At a SuperLink: passes the messages of the role on this host to nodes, and answers back.

It holds nothing: a role whose relay ended starts another and asks again.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from record import pack, unpack

from acme_fleet.errors import AcmeError
from acme_fleet.network.flower.frames import BELL, Header, receive_frame, ring, send_frame
from acme_fleet.network.flower.soon import look_again_soon

_POLL_S = 0.2  # between two looks for answers
_MORE_S = 0.02  # a role's questions to all of its peers come one after the other
_TOGETHER = 2**23  # bytes of questions that are sent at a time
_LONELY_S = 60.0  # without its role's process for so long, it ends
_UNKNOWN = {"error": "the SuperLink knows no such node; was its key revoked?", "passing": True}

Inbox = queue.SimpleQueue[tuple[Header, bytes] | None]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the role's process until it says that it has finished."""
    look_again_soon()
    path = str(context.run_config["socket"])
    for connection in _connections(path):
        with connection:
            if _serve(connection, grid, Path(path).with_name(BELL)):
                return


def _connections(path: str) -> Iterator[socket.socket]:
    """A connection to the role's process whenever it can be had."""
    since = time.monotonic()
    while time.monotonic() - since < _LONELY_S:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            time.sleep(0.5)
            continue
        yield connection
        since = time.monotonic()


def _serve(connection: socket.socket, grid: Grid, bell: Path) -> bool:
    """Pass messages until the connection ends; whether the role has finished."""
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    waiting: dict[str, str] = {}
    while True:
        frames = _asked(inbox)
        if any(frame is None or frame[0].get("stop") for frame in frames):
            return None not in frames
        questions = [frame for frame in frames if frame is not None]
        try:
            sent = _push(grid, bell, questions) if questions else {}
            waiting |= sent
            for header, _ in questions:
                if header["id"] not in sent.values():
                    send_frame(connection, {"id": header["id"], **_UNKNOWN})
            for header, payload in _pull(grid, waiting):
                send_frame(connection, header, payload)
        except OSError:
            return False


def _asked(inbox: Inbox) -> list[tuple[Header, bytes] | None]:
    """The next questions, to be sent together; none if there are none for a while."""
    frames: list[tuple[Header, bytes] | None] = []
    size, pause = 0, _POLL_S
    with suppress(queue.Empty):
        while size < _TOGETHER:
            frame = inbox.get(timeout=pause)
            frames.append(frame)
            if frame is None or frame[0].get("stop"):
                break
            size, pause = size + len(frame[1]), _MORE_S
    return frames


def _read(connection: socket.socket, inbox: Inbox) -> None:
    try:
        while True:
            inbox.put(receive_frame(connection))
    except OSError:
        inbox.put(None)


def _push(grid: Grid, bell: Path, frames: list[tuple[Header, bytes]]) -> dict[str, str]:
    """Send messages, and ring for each; their ids at Flower, and the role's id for each."""
    messages, nodes = [], [int(header.pop("node")) for header, _ in frames]
    for node, (header, payload) in zip(nodes, frames, strict=True):
        ttl = float(header["patience"])
        messages.append(Message(pack(header, payload), node, "query", ttl=ttl))
    numbers = list(grid.push_messages(messages))
    for node in nodes:
        ring(bell, node)
    asked = zip(numbers, (header["id"] for header, _ in frames), strict=False)
    return {str(number): own for number, own in asked if number}


def _pull(grid: Grid, waiting: dict[str, str]) -> Iterator[tuple[Header, bytes]]:
    if not waiting:
        return
    for message in grid.pull_messages(list(waiting)):
        asked = waiting.pop(message.metadata.reply_to_message_id, None)
        if asked is None:
            continue
        if message.has_error():
            yield {"id": asked, "error": message.error.reason, "passing": True}, b""
            continue
        try:
            header, payload = unpack(message.content)
        except (AcmeError, AttributeError, LookupError, TypeError, ValueError) as error:
            yield {"id": asked, "error": f"a malformed answer was refused: {error}"}, b""
            continue
        if header.get("id") == asked:  # an answer of who does not know the question is dropped
            yield header, payload
