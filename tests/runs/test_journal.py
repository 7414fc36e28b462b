"""``events.jsonl``: damaged lines are noticed, nothing is lost, and repetition is told apart."""

from __future__ import annotations

import errno
import json
import math
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import DamagedError, WriteError
from acme_fleet.runs.events import (
    Event,
    FaultEvent,
    MessageEvent,
    StageEvent,
    messages_of,
    method_and_resent,
    stages_of,
)
from acme_fleet.runs.journal import Journal, read_events, read_journal


def _filled(path: Path) -> list[Event]:
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.message(
        *("north", "cam-1", "RoundStart", 100),
        tier="device",
        direction="down",
        occasion="round 1",
    )
    with journal.stage("cam-1", "round 1", "device"):
        pass
    journal.fault("north", "edge", "cam-1", "no answer before the deadline")
    journal.message(
        *("cam-1", "north", "ImportanceUpload", 321),
        tier="device",
        direction="up",
        occasion="round 1",
    )
    return read_events(path)


@given(place=st.integers(0, 10**4), bit=st.integers(0, 7))
def test_no_bit_of_a_line_can_change_unnoticed(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.getbasetemp() / "flipped.jsonl"
    events = _filled(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    found, damaged = read_journal(path)
    assert all(event in events for event in found)
    assert len(found) >= 1
    if found != events and content.endswith(b"\n"):
        assert damaged
    Journal(path)  # goes on with it, and tells of lines that are gone
    *_, last = again = read_events(path)
    told = isinstance(last, FaultEvent) and "that are missing" in last.fault
    assert all(event in events for event in (again[:-1] if told else again))


_TIME = "2026-01-01T00:00:00+00:00"


def _old(sender: str, receiver: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"time": _TIME, "from": sender, "to": receiver, "type": kind, "bytes": 1, **more}


def _old_stage(actor: str) -> dict[str, Any]:
    return {"time": _TIME, "stage": "x", "actor": actor, "seconds": 1.0}


_SENT = _old("a", "b", "X")
_TYPED = _SENT | {"occasion": "", "tier": "device", "direction": "up"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "no JSON: "),
        ("[]", "no JSON object"),
        ("[" * 100_000, "no JSON: it is nested too deeply"),
        ("\udcff", "no JSON: "),
        ({}, "no message: time: "),
        ({k: v for k, v in _SENT.items() if k != "bytes"}, "no message: bytes: "),
        (_SENT | {"bytes": "1"}, "no message: bytes: "),
        (_SENT | {"bytes": math.nan}, "no message: bytes: "),
        (_SENT | {"bytes": -1}, "no message: bytes: "),
        (_SENT | {"type": ["X"]}, "no message: type: "),
        (_SENT | {"from": {"cloud": 1}}, "no message: from: "),
        (_SENT | {"time": "yesterday"}, "no message: time: .*yesterday is no date"),
        (_SENT | {"time": _TIME[:-6]}, "no message: time: "),
        (_TYPED | {"tier": "edge"}, "no message: tier: "),
        (_TYPED | {"direction": "left"}, "no message: direction: "),
        (_TYPED | {"raw": "data"}, "no message: raw: "),
        (_TYPED | {"check": "0" * 16}, "its checksum is another"),
        (_old_stage("a") | {"actor": 3}, "no stage: actor: "),
        (_old_stage("a") | {"seconds": math.inf}, "no stage: seconds: "),
        (_old_stage("a") | {"tier": "x"}, "no stage: tier: "),
        ({"time": _TIME, "fault": "x", "actor": "a", "about": "b"}, "no fault: tier: "),
    ],
)
def test_damaged_line_is_left_out_and_its_number_told(
    line: str | dict[str, Any], reason: str, tmp_path: Path
):
    path = tmp_path / "events.jsonl"
    events = _filled(path)
    first, *rest = path.read_text().splitlines()
    text = "\n".join([first, line if isinstance(line, str) else json.dumps(line), *rest, ""])
    path.write_bytes(text.encode(errors="surrogateescape"))
    found, damaged = read_journal(path)
    assert found == events
    assert list(damaged) == [2]
    assert re.match(reason, damaged[2])


def test_damaged_lines_are_told_in_their_order(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text("{}\nno json\n{}\n")
    assert list(read_journal(path).damaged) == [1, 2, 3]


def test_lines_of_an_older_version_get_their_tier_from_who_sent_what_to_whom(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    lines = [
        _old("cloud", "north", "ProfileRequest"),
        _old("north", "cam-1", "ProfileRequest"),
        _old("cam-1", "north", "DeviceProfile"),
        _old("north", "cloud", "ClusterProfile", occasion=""),
        _old("north", "cam-1", "ImportanceUpdate", occasion="round 1"),
        _old("south", "cam-9", "RoundStart"),
        *map(_old_stage, ("cloud", "rivals", "north", "south:2", "cam-1", "cam-7")),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    events, damaged = read_journal(path)
    assert not damaged
    messages = messages_of(events)
    assert [(m.tier, m.direction, m.edge) for m in messages] == [
        ("cloud", "down", "north"),
        ("device", "down", "north"),
        ("device", "up", "north"),
        ("cloud", "up", "north"),
        ("device", "down", "north"),
        ("device", "down", "south"),
    ]
    tiers = [stage.tier for stage in stages_of(events)]
    assert tiers == ["cloud", "rivals", "edge", "edge", "device", "device"]


def test_older_messages_without_an_occasion_each_count_and_are_copied_once(tmp_path: Path):
    path, cloud = tmp_path / "events.jsonl", tmp_path / "cloud.jsonl"
    times = ("2026-01-01T00:00:01+00:00", "2026-01-01T00:00:02+00:00")
    lines = [_old("cam-1", "north", "ImportanceUpload", time=time) for time in times]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cloud.write_text(json.dumps(_old("cloud", "north", "ProfileRequest")) + "\n")
    assert method_and_resent(read_events(path)) == (read_events(path), [])
    for _ in range(2):  # a host that goes on tells all of it again
        Journal(cloud).copy(read_events(path))
    assert read_events(cloud)[1:] == read_events(path)


def test_direction_of_every_message_of_the_protocol_is_known_in_older_journals(tmp_path: Path):
    """The versions before had these messages, and their lines no direction."""
    path = tmp_path / "events.jsonl"
    up = ["ClusterProfile", "ClusterReport", "DeviceProfile", "DeviceReport", "FeatureSample"]
    up += ["ByClassUpload", "ImportanceUpload", "MaskedUpload", "RoundReport", "WeightsUpload"]
    down = ["BackboneAssignment", "HeaderAssignment", "ImportanceUpdate", "MaskedRoundStart"]
    down += ["MaskedUpdate", "ProfileRequest", "ReportRequest", "RoundStart", "WeightsUpdate"]
    lines = [_old("cam-1", "north", kind) for kind in up]
    lines += [_old("north", "cam-1", kind) for kind in down]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    messages = messages_of(read_events(path))
    assert [m.type for m in messages if m.direction == "up"] == up
    assert {m.edge for m in messages} == {"north"}


def test_a_fault_is_one_short_line(tmp_path: Path):
    journal = Journal(tmp_path / "events.jsonl")
    journal.fault("north", "edge", "cam-1", "gone\x1b[2J\nall is well" + "x" * 9000)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert isinstance(event, FaultEvent)
    assert event.fault.isprintable()
    assert len(event.fault) <= 300


@pytest.mark.parametrize("left", ['{"time": "20', '{"time"', "\x00\x00\x00"])
def test_what_a_crash_left_of_a_line_is_removed(left: str, tmp_path: Path):
    path = tmp_path / "events.jsonl"
    events = _filled(path)
    with path.open("a") as file:
        file.write(left)
    assert read_journal(path) == (events, {})
    Journal(path).message("a", "b", "Next", 1, tier="device", direction="up")
    found, damaged = read_journal(path)
    assert [message.type for message in messages_of(found)[-2:]] == ["ImportanceUpload", "Next"]
    assert not damaged


def test_last_line_without_its_end_is_kept(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    events = _filled(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_events(path) == events
    Journal(path).message("a", "b", "Next", 1, tier="device", direction="up")
    assert read_events(path)[: len(events)] == events


def test_file_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(DamagedError, match=r"cannot read .*events\.jsonl: it is a folder"):
        read_events(tmp_path / "events.jsonl")
    with pytest.raises(WriteError, match=r"cannot write .*events\.jsonl: it is a folder"):
        Journal(tmp_path / "events.jsonl")


@pytest.fixture
def small_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
def test_full_disk_leaves_whole_lines(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)

    def fill() -> None:
        for number in range(100):
            journal.message("a", "b", "X", number, tier="device", direction="up")

    with pytest.raises(WriteError, match=r"events\.jsonl: the (file size|disk)") as refusal:
        fill()
    assert isinstance(refusal.value.__cause__, OSError)
    assert refusal.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    sizes = [message.size_bytes for message in messages_of(read_events(path))]
    assert sizes == list(range(len(sizes)))
    assert sizes
    assert path.read_bytes().endswith(b"\n")


def _message(size: int, **changes: Any) -> MessageEvent:
    plain = {"time": _TIME, "from": "a", "to": "b", "type": "X", "bytes": size}
    return MessageEvent.model_validate({**plain, "tier": "device", "direction": "up", **changes})


def test_message_of_the_same_occasion_counts_once():
    events = [
        _message(1),
        _message(2, occasion="round 1"),
        StageEvent(time=_TIME, stage="x", actor="a", tier="device", seconds=1.0),
        _message(3),
        _message(4, occasion="round 2"),
        _message(5, to="c"),
        _message(6, **{"from": "c"}),
        _message(7, type="Y"),
        _message(8),
    ]
    method, again = method_and_resent(events)
    assert sorted(event.size_bytes for event in method) == [2, 4, 5, 6, 7, 8], "the last counts"
    assert [event.size_bytes for event in again] == [1, 3]


def test_the_last_of_a_stage_s_parts_is_told_with_its_number(tmp_path: Path):
    """A tracker's curve has a point for each epoch, and the last one is not the first again."""
    told: list[tuple[object, ...]] = []

    class Seen:
        def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
            told.append((done, total, note))

    with Journal(tmp_path / "events.jsonl", Seen()).stage("cloud", "elastic", "cloud") as progress:
        for epoch in (1, 2, 3):
            progress(epoch, 3, f"loss {4 - epoch}")
    assert told == [(0, 1, ""), (1, 3, "loss 3"), (2, 3, "loss 2"), (3, 3, "loss 1")]
