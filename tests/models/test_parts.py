"""Several checkpoints in one file: parts come and go, and damage stays where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acme_fleet.errors import DamagedError
from acme_fleet.models.parts import Part, Parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    found = Parts(tmp_path / "work.safetensors")
    found.write({"start": part(1.0), "pruned-1": part(2.0), "finished": ({}, {"name": "cam-1"})})
    return found


def part(value: float) -> Part:
    return {"a.weight": torch.full((3,), value), "b": torch.tensor(7)}, {"number": value}


def test_parts_are_read_as_they_were_written(parts: Parts) -> None:
    assert parts.names() == ["finished", "pruned-1", "start"]
    tensors, about = parts.read("pruned-1")
    assert tensors.keys() == {"a.weight", "b"}
    assert tensors["a.weight"].tolist() == [2.0] * 3
    assert about == {"number": 2.0}
    assert parts.read("finished") == ({}, {"name": "cam-1"})
    assert parts.path.stat().st_mode & 0o777 == 0o600


def test_a_part_takes_the_place_of_its_name_and_others_leave(parts: Parts) -> None:
    parts.write({"start": part(3.0)}, gone=["pruned-1"])
    assert parts.names() == ["finished", "start"]
    assert parts.read("start")[0]["a.weight"].tolist() == [3.0] * 3
    assert parts.read("finished")[1] == {"name": "cam-1"}


def test_no_file_and_no_part(parts: Parts, tmp_path: Path) -> None:
    none = Parts(tmp_path / "none.safetensors")
    assert none.names() == []
    for each in (none, parts):
        with pytest.raises(DamagedError, match="it has no trained-1"):
            each.read("trained-1")
        assert each.if_sound("trained-1", lambda _: pytest.fail("there is none")) is None
    none.write({})
    assert none.names() == []
    assert none.path.exists()


@pytest.mark.parametrize("place", ["tensor", "description"])
def test_damage_to_one_part_leaves_the_others(parts: Parts, place: str) -> None:
    stored = parts.path.read_bytes()
    mine = torch.full((3,), 2.0).numpy().tobytes()
    old, new = (mine, b"\x01" + mine[1:]) if place == "tensor" else (b"2.0}", b"2.5}")
    assert stored.count(old) == 1
    parts.path.write_bytes(stored.replace(old, new))
    for _ in range(2):  # and once more behind a change of another part
        with pytest.raises(DamagedError, match=r"work\.safetensors: it is damaged"):
            parts.read("pruned-1")
        assert parts.if_sound("pruned-1", lambda _: True) is None
        assert parts.if_sound("start", lambda _: True)
        parts.write({"start": part(4.0)})


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_file_that_is_cut_off_is_named(parts: Parts, size: int) -> None:
    parts.path.write_bytes(parts.path.read_bytes()[:size])
    with pytest.raises(DamagedError, match=r"work\.safetensors"):
        parts.names()
    with pytest.raises(DamagedError, match=r"work\.safetensors"):
        parts.write({"start": part(1.0)})
    assert parts.if_sound("start", lambda _: True) is None
