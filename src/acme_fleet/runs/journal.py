"""The journal of a run: typed events, each a line of ``events.jsonl``.

A line is a JSON object. Its last entry, ``check``, is a checksum of the others, so that a damaged
line is noticed; lines without it are an older version's. Those without a tier too: it is found from
who sent what to whom when they are read. A file beside it holds the number of lines, so that a
journal that was cut off at a line's end is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

from pydantic import ValidationError

from acme_fleet.errors import DamagedError
from acme_fleet.outside import one_line, read_regular, reading, regular
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.events import (
    Direction,
    Event,
    FaultEvent,
    FigureEvent,
    LinkTier,
    MessageEvent,
    StageEvent,
    Tier,
)
from acme_fleet.runs.forecast import Earlier, Expected
from acme_fleet.runs.notes import Progress

_CHECK, _COUNT = "check", ".count"
_LONGEST_FAULT = 300
_KINDS = {
    StageEvent: "stage",
    MessageEvent: "message",
    FaultEvent: "fault",
    FigureEvent: "figure",
}
_MARKS = {"stage": StageEvent, "fault": FaultEvent, "figure": FigureEvent}
"""Entries that tell what a line is; a message has none of them."""

# --- writing ----------------------------------------------------------------------------------


class Observer(Protocol):
    """Someone who watches a run, for example a live display."""

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        """A stage has finished ``done`` of ``total`` parts; equal numbers mean it is over.

        ``note`` says in words how it stands.
        """
        ...


@runtime_checkable
class PlanObserver(Protocol):
    """An observer that is also told the stages that a run will have, before the first one."""

    def plan(self, expected: Mapping[str, Expected], earlier: Earlier | None = None) -> None:
        """Stages by the beginnings of their names, and the time spent before an interruption."""
        ...


class Journal:
    """Appends events to a file and shows progress to an observer. Safe to share by threads."""

    def __init__(self, path: Path, observer: Observer | None = None) -> None:
        self._path = path
        self._observer = observer
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._known: set[str] | None = None  # read when events of another journal come
        self._lines = 0
        if path.exists():
            with writing(path), path.open("r+b") as file:
                _complete(file)
                file.seek(0)
                self._lines = file.read().count(b"\n")
        if missing := _counted(path) - self._lines:
            told = f"lines of {path.name} that are missing: {missing}; they are in no sum"
            if missing > 0:
                self.fault(_CLOUD, "cloud", _CLOUD, told)

    def cancel(self) -> None:
        """Make every thread that still works for this run stop at its next event."""
        self._cancelled.set()

    def message(
        self,
        sender: str,
        receiver: str,
        kind: str,
        size: int,
        *,
        tier: LinkTier,
        direction: Direction,
        occasion: str = "",
    ) -> None:
        """Record a message of ``size`` bytes, see :class:`MessageEvent`."""
        self._write(
            MessageEvent(
                time=_now(),
                sender=sender,
                receiver=receiver,
                type=kind,
                size_bytes=size,
                occasion=occasion,
                tier=tier,
                direction=direction,
            )
        )

    def fault(self, actor: str, tier: Tier, about: str, reason: str) -> None:
        """Record a fault, see :class:`FaultEvent`; its text is made safe to show."""
        fault = one_line(reason, _LONGEST_FAULT)
        self._write(FaultEvent(time=_now(), fault=fault, actor=actor, tier=tier, about=about))

    def figure(self, actor: str, tier: Tier, name: str, step: int, value: float) -> None:
        """Record a number, see :class:`FigureEvent`."""
        self._write(
            FigureEvent(time=_now(), figure=name, actor=actor, tier=tier, step=step, value=value)
        )

    @contextmanager
    def stage(self, actor: str, name: str, tier: Tier) -> Iterator[Progress]:
        """Record a stage with its duration; yields how to tell its progress.

        A value that is told with it is recorded as a figure of the stage's name.
        """
        started, clock, parts, latest = _now(), time.monotonic(), 1, ""

        def progress(done: int, total: int, note: str = "", value: float | None = None) -> None:
            nonlocal parts, latest
            parts, latest = total, note
            self.stop_if_cancelled()
            if value is not None:
                self.figure(actor, tier, name, done, value)
            if self._observer and done < total:
                self._observer.stage(actor, name, done, total, note)

        progress(0, 1)
        yield progress
        if self._observer:
            self._observer.stage(actor, name, parts, parts, latest)
        seconds = round(time.monotonic() - clock, 3)
        self._write(StageEvent(time=started, stage=name, actor=actor, tier=tier, seconds=seconds))

    def copy(self, events: Iterable[Event]) -> None:
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

    def _write(self, event: Event) -> None:
        self.stop_if_cancelled()
        line = _line(event.record())
        with self._lock, writing(self._path), self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, "a line was cut off")
            except OSError:
                file.truncate(before)  # half a line would spoil the next one
                raise
            self._lines += 1
            _count(self._path, self._lines)


# --- reading ----------------------------------------------------------------------------------


class Events(NamedTuple):
    """A journal's events, oldest first, and the reasons of its damaged lines by their numbers."""

    events: list[Event]
    damaged: dict[int, str]


def finished_stages(path: Path) -> dict[tuple[str, str], float]:
    """Seconds of each stage that is over, by actor and name; the latest, where it was repeated."""
    stages = (event for event in read_events(path) if isinstance(event, StageEvent))
    return {(event.actor, event.stage): event.seconds for event in stages}


def read_events(path: Path) -> list[Event]:
    """All events of a run, oldest first; damaged lines are left out, see :func:`read_journal`."""
    return read_journal(path).events


def read_journal(path: Path) -> Events:
    """All events of a run. What a crash left of a last line is no event and no damage.

    Raises:
        DamagedError: if the file cannot be read at all.
    """
    found = Events([], {})
    if not path.exists():
        return found
    with reading(f"cannot read {path}", DamagedError):
        *lines, last = read_regular(path).split(b"\n")
    if _is_whole(last):
        lines.append(last)
    if (missing := _counted(path) - len(lines)) > 0:
        found.damaged[len(lines) + 1] = f"lines that are missing: {missing}"
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            records[number] = _record(line)
        except DamagedError as error:
            found.damaged[number] = str(error)
    edges = _edge_servers(records.values())
    for number, record in records.items():
        try:
            found.events.append(_event(record, edges))
        except DamagedError as error:
            found.damaged[number] = str(error)
    return Events(found.events, dict(sorted(found.damaged.items())))


def read_on(path: Path, offset: int) -> tuple[list[Event], int]:
    """The events after a journal's first ``offset`` bytes; damaged lines are left out.

    Returns:
        The events, and the offset to go on from; it is before a line that is not complete yet.

    Raises:
        DamagedError: if the file cannot be read.
    """
    if not path.exists():
        return [], 0
    with reading(f"cannot read {path}", DamagedError), regular(path).open("rb") as file:
        file.seek(offset)
        lines, _, _ = file.read().rpartition(b"\n")
    records = []
    for line in lines.split(b"\n") if lines else []:
        with suppress(DamagedError):
            records.append(_record(line))
    events, edges = [], _edge_servers(records)
    for record in records:
        with suppress(DamagedError):
            events.append(_event(record, edges))
    return events, offset + (len(lines) + 1 if lines else 0)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps({**record, _CHECK: _digest(record)}).encode() + b"\n"


def _record(line: bytes) -> dict[str, Any]:
    """A line's object without its checksum.

    Raises:
        DamagedError: if it is no JSON object, or has another checksum.
    """
    with reading("no JSON", DamagedError):
        record = json.loads(line)
    if not isinstance(record, dict):
        raise DamagedError("no JSON object")
    told = record.pop(_CHECK, None)
    if told not in (None, _digest(record)):
        raise DamagedError("its checksum is another")
    return record


def _event(record: Mapping[str, Any], edges: Container[str]) -> Event:
    """The event of a line's object, in a journal with these edge servers.

    Raises:
        DamagedError: naming the key that is missing or wrong.
    """
    kind = next((kind for mark, kind in _MARKS.items() if mark in record), MessageEvent)
    try:
        return kind.model_validate(_completed(record, edges))
    except ValidationError as error:
        raise DamagedError(f"no {_KINDS[kind]}: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return one_line(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _is_whole(last: bytes) -> bool:
    """True if the last line of a file, without a line's end, is an event all the same."""
    try:
        _event(_record(last), ())
    except DamagedError:
        return False
    return True


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _complete(file: BinaryIO) -> None:
    """Remove what a crash has left of a last line, so that it does not swallow the next."""
    text = file.read()
    whole = text.rfind(b"\n") + 1
    if whole == len(text):
        return
    if _is_whole(text[whole:]):
        file.write(b"\n")
    else:
        file.truncate(whole)


def _count(path: Path, lines: int) -> None:
    """Write the number of a journal's lines, in place: always as many bytes."""
    descriptor = os.open(path.with_suffix(_COUNT), os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, b"%020d\n" % lines)
    finally:
        os.close(descriptor)


def _counted(path: Path) -> int:
    """The number of lines that a journal had when it was last written; 0 where it is not known."""
    count = path.with_suffix(_COUNT)
    with reading(f"cannot read {count}", DamagedError):
        text = count.read_bytes()[:20] if count.exists() else b""
    return int(text) if text.isdigit() else 0


def _key(event: Event) -> str:
    return json.dumps(event.record(), sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- lines of older versions ------------------------------------------------------------------

_CLOUD = "cloud"
_UP = (
    *("ClusterProfile", "ClusterReport", "DeviceProfile", "FeatureSample"),
    *("ImportanceUpload", "WeightsUpload", "ByClassUpload", "MaskedUpload"),
    *("RoundReport", "DeviceReport"),
)
"""Types that went up in versions whose lines tell no direction."""


def _edge_servers(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Edge servers, from the messages of an older version."""
    found = set()
    for record in records:
        sender, receiver = record.get("from"), record.get("to")
        if "tier" in record or not isinstance(sender, str) or not isinstance(receiver, str):
            continue
        if _CLOUD in (sender, receiver):
            found.add(receiver if sender == _CLOUD else sender)
        else:
            found.add(receiver if record.get("type") in _UP else sender)
    return found


def _completed(record: Mapping[str, Any], edges: Container[str]) -> Mapping[str, Any]:
    """A record with what an older version's lacks.

    The time stands for an occasion: each message counts, and is the same in every journal.
    """
    if "tier" in record or "fault" in record or "figure" in record:
        return record
    if "stage" in record:
        actor = record.get("actor")
        edge = isinstance(actor, str) and actor.partition(":")[0] in edges
        return {
            **record,
            "tier": actor if actor in (_CLOUD, "rivals") else "edge" if edge else "device",
        }
    up = record.get("type") in _UP
    with_cloud = _CLOUD in (record.get("from"), record.get("to"))
    return {
        "occasion": record.get("time"),
        **record,
        "tier": "cloud" if with_cloud else "device",
        "direction": "up" if up else "down",
    }
