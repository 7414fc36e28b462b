"""``events.jsonl``: damaged lines are noticed, nothing is lost, and repetition is told apart."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import DamagedError, WriteError
from acme_fleet.runs.journal import Journal, method_and_resent, read_events, read_journal


def _filled(path: Path) -> list[dict[str, Any]]:
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.message("north", "cam-1", "RoundStart", 100, "round 1")
    with journal.stage("cam-1", "round 1"):
        pass
    journal.message("cam-1", "north", "ImportanceUpload", 321, "round 1")
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
    Journal(path)  # goes on with it
    assert all(event in events for event in read_events(path))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "{}",
        '{"time": "2026-01-01T00:00:00+00:00", "from": "a", "to": "b", "type": "X"}',
        '{"time": "2026-01-01T00:00:00+00:00", "from": "a", "to": "b", "type": "X", "bytes": "1"}',
        '{"time": "2026-01-01T00:00:00+00:00", "from": "a", "to": "b", "type": "X", "bytes": NaN}',
        '{"time": "2026-01-01T00:00:00+00:00", "from": "a", "to": "b", "type": "X", "bytes": -1}',
        '{"time": "yesterday", "from": "a", "to": "b", "type": "X", "bytes": 1}',
        '{"time": "2026-01-01T00:00:00+00:00", "stage": "x", "actor": 3, "seconds": 1}',
        '{"time": "2026-01-01T00:00:00+00:00", "stage": "x", "actor": "a", "seconds": Infinity}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_damaged_line_is_left_out_and_its_number_told(line: str, tmp_path: Path):
    path = tmp_path / "events.jsonl"
    events = _filled(path)
    first, *rest = path.read_text().splitlines()
    text = "\n".join([first, line, *rest, ""])
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert read_journal(path) == (events, [2])


def test_older_lines_without_checksum_are_read(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    old = {"time": "2026-01-01T00:00:00+00:00", "from": "a", "to": "b", "type": "X", "bytes": 1}
    path.write_text(json.dumps(old) + "\n")
    assert read_journal(path) == ([old], [])


@pytest.mark.parametrize("left", ['{"time": "20', '{"time"', "\x00\x00\x00"])
def test_what_a_crash_left_of_a_line_is_removed(left: str, tmp_path: Path):
    path = tmp_path / "events.jsonl"
    events = _filled(path)
    with path.open("a") as file:
        file.write(left)
    assert read_journal(path) == (events, [])
    Journal(path).message("a", "b", "Next", 1)
    found, damaged = read_journal(path)
    assert [event.get("type") for event in found[-2:]] == ["ImportanceUpload", "Next"]
    assert not damaged


def test_last_line_without_its_end_is_kept(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    events = _filled(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_events(path) == events
    Journal(path).message("a", "b", "Next", 1)
    assert read_events(path)[:3] == events


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
            journal.message("a", "b", "X", number)

    with pytest.raises(WriteError, match=r"events\.jsonl: the (file size|disk)") as refusal:
        fill()
    assert isinstance(refusal.value.__cause__, OSError)
    assert refusal.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    sizes = [event["bytes"] for event in read_events(path)]
    assert sizes == list(range(len(sizes)))
    assert sizes
    assert path.read_bytes().endswith(b"\n")


def _message(**changes: Any) -> dict[str, Any]:
    plain = {"time": "t", "from": "a", "to": "b", "type": "X", "bytes": 1, "occasion": ""}
    return plain | changes


def test_message_of_the_same_occasion_counts_once():
    events = [
        _message(bytes=1),
        _message(bytes=2, occasion="round 1"),
        {"time": "t", "stage": "x", "actor": "a", "seconds": 1.0},
        _message(bytes=3),
        _message(bytes=4, occasion="round 2"),
        _message(bytes=5, to="c"),
        _message(bytes=6, **{"from": "c"}),
        _message(bytes=7, type="Y"),
        _message(bytes=8),
    ]
    method, again = method_and_resent(events)
    assert sorted(event["bytes"] for event in method) == [2, 4, 5, 6, 7, 8], "the last one counts"
    assert [event["bytes"] for event in again] == [1, 3]


def test_older_messages_each_count():
    old = [{key: v for key, v in _message(bytes=n).items() if key != "occasion"} for n in range(3)]
    assert method_and_resent(old) == (old, [])
