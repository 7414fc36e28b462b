"""What happened and when: every message and every stage as a line of ``events.jsonl``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol


class Progress(Protocol):
    """How a stage tells that it has finished ``done`` of ``total`` parts."""

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
        if path.exists() and (text := path.read_text()) and not text.endswith("\n"):
            path.write_text(text + "\n")  # a line cut off by a crash must not swallow the next

    def cancel(self) -> None:
        """Make every thread that still works for this run stop at its next event."""
        self._cancelled.set()

    def message(self, sender: str, receiver: str, kind: str, size: int) -> None:
        """Record a message of ``size`` bytes."""
        self._write({"from": sender, "to": receiver, "type": kind, "bytes": size})

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
        line = json.dumps({"time": _now(), **event})
        with self._lock, self._path.open("a") as file:
            file.write(line + "\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; a line cut off by a crash is left out."""
    events: list[dict[str, Any]] = []
    if not path.exists():
        return events
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def _key(event: dict[str, Any]) -> str:
    return json.dumps(event, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
