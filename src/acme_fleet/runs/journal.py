"""The journal of a run: every message and every stage as a line of ``events.jsonl``.

A line is a JSON object. Its last entry, ``check``, is a checksum of the others, so that a damaged
line is noticed; lines without it are an older version's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from acme_fleet.errors import DamagedError
from acme_fleet.outside import reading
from acme_fleet.runs.atomic import writing

_CHECK = "check"
_STAGE = {"time", "stage", "actor", "seconds"}
_MESSAGE = {"time", "from", "to", "type", "bytes"}
_OCCASION = "occasion"


class Progress(Protocol):
    """A stage's callback: it has finished ``done`` of ``total`` parts."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """``note`` says in words how it stands."""
        ...


class Observer(Protocol):
    """Someone who watches a run, for example a live display."""

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        """A stage has finished ``done`` of ``total`` parts; equal numbers mean it is over.

        ``note`` says in words how it stands.
        """
        ...


class Journal:
    """Appends events to a file and shows progress to an observer. Safe to share by threads."""

    def __init__(self, path: Path, observer: Observer | None = None) -> None:
        self._path = path
        self._observer = observer
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._known: set[str] | None = None  # read when events of another journal come
        if path.exists():
            with writing(path), path.open("r+b") as file:
                _complete(file)

    def cancel(self) -> None:
        """Make every thread that still works for this run stop at its next event."""
        self._cancelled.set()

    def message(self, sender: str, receiver: str, kind: str, size: int, occasion: str = "") -> None:
        """Record a message of ``size`` bytes.

        ``occasion`` tells it from other messages of its type between the two: two of one occasion
        are one message that was sent again.
        """
        told = {"from": sender, "to": receiver, "type": kind, "bytes": size, _OCCASION: occasion}
        self._write(told)

    @contextmanager
    def stage(self, actor: str, name: str) -> Iterator[Progress]:
        """Record a stage with its duration; yields how to tell its progress."""
        started, clock = _now(), time.monotonic()

        def progress(done: int, total: int, note: str = "") -> None:
            self.stop_if_cancelled()
            if self._observer and done < total:
                self._observer.stage(actor, name, done, total, note)

        progress(0, 1)
        yield progress
        if self._observer:
            self._observer.stage(actor, name, 1, 1)
        seconds = round(time.monotonic() - clock, 3)
        self._write({"time": started, "stage": name, "actor": actor, "seconds": seconds})

    def copy(self, events: Iterable[dict[str, Any]]) -> None:
        """Take events over from another journal; those that are here already are left out."""
        for event in events:
            if self._known is None:
                self._known = {_key(known) for known in read_events(self._path)}
            if _key(event) not in self._known:
                self._known.add(_key(event))
                self._write(event)

    def stop_if_cancelled(self) -> None:
        """Raise KeyboardInterrupt if the run was cancelled."""
        # Not an AcmeError: a role must not take it for a peer's failure and go on without it.
        if self._cancelled.is_set():
            raise KeyboardInterrupt

    def _write(self, event: dict[str, Any]) -> None:
        self.stop_if_cancelled()
        line = _line({"time": _now(), **event})
        with self._lock, writing(self._path), self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, "a line was cut off")
            except OSError:
                file.truncate(before)  # half a line would spoil the next one
                raise


class Events(NamedTuple):
    """A journal's events, oldest first, and the numbers of its damaged lines."""

    events: list[dict[str, Any]]
    damaged: list[int]


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; damaged lines are left out, see :func:`read_journal`."""
    return read_journal(path).events


def read_journal(path: Path) -> Events:
    """All events of a run. What a crash left of a last line is no event and no damage.

    Raises:
        DamagedError: if the file cannot be read at all.
    """
    found = Events([], [])
    if not path.exists():
        return found
    with reading(f"cannot read {path}", DamagedError):
        *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        event = _event(line)
        if event is None:
            found.damaged.append(number)
        else:
            found.events.append(event)
    if (event := _event(last)) is not None:
        found.events.append(event)
    return found


def method_and_resent(
    events: Iterable[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Messages of the method, and those that were sent again beside them.

    A message is one of the method by sender, receiver, type and occasion. Where it was sent
    several times, after an interruption or a failure, the last one counts: the result rests on it.
    """
    last: dict[tuple[str, ...], Mapping[str, Any]] = {}
    again: list[Mapping[str, Any]] = []
    for number, event in enumerate(event for event in events if "bytes" in event):
        # An older version's messages have no occasion, and each counts.
        occasion = event.get(_OCCASION, f"number {number}")
        key = (event["from"], event["to"], event["type"], occasion)
        if key in last:
            again.append(last.pop(key))
        last[key] = event
    return list(last.values()), again


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps({**event, _CHECK: _digest(event)}).encode() + b"\n"


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; none if it is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    told = event.pop(_CHECK, None)
    known = event.keys() in (_STAGE, _MESSAGE, _MESSAGE | {_OCCASION})
    return event if known and told in (None, _digest(event)) and _has_types(event) else None


def _has_types(event: Mapping[str, Any]) -> bool:
    size, seconds = event.get("bytes", 0), event.get("seconds", 0.0)
    if type(size) is not int or type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        return False
    texts = [value for key, value in event.items() if key not in ("bytes", "seconds")]
    return all(isinstance(text, str) for text in texts) and size >= 0 and is_moment(event["time"])


def is_moment(text: str) -> bool:
    """True for a date and time with its offset from UTC, the form of events."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _digest(event: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()[:16]


def _complete(file: BinaryIO) -> None:
    """Remove what a crash has left of a last line, so that it does not swallow the next."""
    text = file.read()
    whole = text.rfind(b"\n") + 1
    if whole == len(text):
        return
    if _event(text[whole:]) is not None:
        file.write(b"\n")
    else:
        file.truncate(whole)


def _key(event: Mapping[str, Any]) -> str:
    return json.dumps(event, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
