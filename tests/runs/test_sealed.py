"""Documents and bytes with a checksum: damage is noticed, and another version's content refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import DamagedError
from acme_fleet.runs.sealed import (
    STRICT,
    canonical,
    checksum,
    if_sound,
    read_marked_json,
    read_sealed,
    read_sealed_json,
    write_marked_json,
    write_sealed,
    write_sealed_json,
)


@dataclass(frozen=True)
class Rounds:
    __pydantic_config__ = STRICT

    done: int
    shares: dict[str, float]


ROUNDS = Rounds(3, {"cam-1": 0.1, "é": 1.0})
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def _flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


@given(content=_JSON)
def test_any_document_comes_back(content: Any, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_sealed_json(path, content)
    assert read_sealed_json(path, object) == content  # type: ignore[comparison-overlap]


@given(place=st.integers(0, 10**4), bit=st.integers(0, 7))
def test_no_bit_of_a_document_can_change_unnoticed(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.getbasetemp() / "rounds.json"
    write_sealed_json(path, asdict(ROUNDS))
    _flip(path, place, bit)
    read = if_sound(path, lambda path: read_sealed_json(path, Rounds))
    assert read in (None, ROUNDS)  # equal where one kind of space became another


@given(place=st.integers(0, 10**4), bit=st.integers(0, 7))
def test_no_bit_of_a_marked_document_or_of_bytes_can_change_unnoticed(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
):
    """But for the name of the checksum, where the content stays and a key more is there."""
    content = {"name": "tiny", "seconds": {"round 1": 0.25}}
    path = tmp_path_factory.getbasetemp() / "summary.json"
    write_marked_json(path, content)
    _flip(path, place, bit)
    read = if_sound(path, read_marked_json)
    assert read is None or {key: read[key] for key in read.keys() & content.keys()} == content
    write_sealed(path, b"secret")
    _flip(path, place, bit)
    assert if_sound(path, read_sealed) is None


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "no text", "a folder", "deep"])
@pytest.mark.parametrize("read", [read_sealed, read_marked_json])
def test_damage_is_named(damage: str, read: Any, tmp_path: Path):
    path = tmp_path / "state"
    write_marked_json(path, {"a": 1}) if read is read_marked_json else write_sealed(path, b"abc")
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-2])
        case "no text":
            path.write_bytes(b"\xff\xfe" * 30)
        case "a folder":
            path.unlink()
            path.mkdir()
        case "deep":
            path.write_text("[" * 100_000)
    with pytest.raises(DamagedError, match=f"cannot read {path}: "):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        {"done": 3},
        {"done": 3, "shares": {}, "more": 1},
        {"done": "3", "shares": {}},
        {"done": 3.5, "shares": {}},
        {"done": True, "shares": {}},
        {"done": 3, "shares": {"cam-1": math.nan}},
        {"done": 3, "shares": {"cam-1": math.inf}},
        {"done": 3, "shares": {"cam-1": "1"}},
        [3, {}],
        None,
    ],
)
def test_content_of_another_shape_is_refused(content: Any, tmp_path: Path):
    """With a right checksum: another version wrote it, or somebody by hand."""
    path = tmp_path / "rounds.json"
    write_sealed_json(path, content)
    with pytest.raises(DamagedError, match=rf"cannot read {path}: "):
        read_sealed_json(path, Rounds)


def test_older_versions_document_is_told_as_such(tmp_path: Path):
    path = tmp_path / "rounds.json"
    path.write_text(json.dumps(asdict(ROUNDS)))
    with pytest.raises(DamagedError, match="no checksum: an older version of acme-fleet wrote it"):
        read_sealed_json(path, Rounds)
    assert read_marked_json(path) == asdict(ROUNDS)  # what people read has none in older versions


def test_what_can_be_computed_anew_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "features"
    assert if_sound(path, read_sealed) is None
    assert not caplog.records, "a file that is not there is no damage"
    path.write_bytes(b"x" * 99)
    assert if_sound(path, read_sealed) is None
    assert f"cannot read {path}: it is damaged" in caplog.text
    assert "computed anew" in caplog.text


def test_checksum_is_sha256_of_all_parts():
    assert checksum(b"ab", b"c") == checksum(b"abc")
    assert checksum(b"abc").startswith("ba7816bf8f01cfea")
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})


def test_a_pipe_in_the_place_of_state_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "state")
    for read in (read_sealed, read_marked_json, lambda path: read_sealed_json(path, list[int])):
        with pytest.raises(DamagedError, match="it is no regular file"):
            read(tmp_path / "state")
