"""State on disk that was damaged: the same models in the end, or an error that names the file."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_resume import StopAt

from acme_fleet.config.fleet import Fleet
from acme_fleet.edge import search
from acme_fleet.errors import RunError
from acme_fleet.pipeline import customize
from conftest import models_of


@pytest.fixture(scope="module")
def fleet(tiny: Callable[..., Fleet]) -> Fleet:
    devices = [{"name": "cam-1", "storage": "60 kB"}, {"name": "cam-2", "storage": "70 kB"}]
    changes = {
        "reference.training.epochs": 2,
        "backbone.distillation.training.epochs": 2,
        "search.rivals": False,
        "search.steps": 2,
        "search.final_samples": 2,
        "personalization.rounds": 2,
        "clusters": [{"name": "north", "devices": devices}],
    }
    return tiny(**changes)


@dataclass(frozen=True)
class Interrupted:
    """A run that was stopped, and what it ends with if nobody touches it."""

    path: Path
    models: dict[str, bytes]

    @property
    def files(self) -> list[str]:
        """All files below the run directory."""
        found = (path for path in self.path.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.path).as_posix() for path in found)


_POINTS = {
    "in the cloud": StopAt("cloud", "elastic", "middle"),
    "in the search": StopAt("north", "header search", "middle"),
    "in a round": StopAt("cam-2", "round 2", "begin"),
    "at the end": StopAt("cam-2", "final model", "end"),
}


@pytest.fixture(scope="module")
def interrupted(
    fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Interrupted]:
    """``interrupted(point)``: see ``_POINTS``. Not to be changed."""
    base = tmp_path_factory.mktemp("interrupted")
    known: dict[str, Interrupted] = {}

    def stopped(point: str) -> Interrupted:
        if point not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(search, "_SAVE_EVERY_S", 0.0)
                with pytest.raises(KeyboardInterrupt):
                    customize(fleet, base / point, observer=_POINTS[point])
            whole = shutil.copytree(base / point, base / f"{point}, then finished")
            customize(fleet, whole, resume=True)
            known[point] = Interrupted(base / point, models_of(whole))
        return known[point]

    return stopped


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def _fold(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _hide(path: Path, _: random.Random) -> None:
    path.chmod(0)


_DAMAGES = {"flip": _flip, "cut": _cut, "empty": _empty, "fold": _fold, "hide": _hide}


def _ends_well(fleet: Fleet, state: Interrupted, name: str, damage: str, path: Path) -> bool:
    """Damage one file of a copy and go on; whether it came to its end."""
    shutil.copytree(state.path, path)
    seed = f"{name} {damage}"
    _DAMAGES[damage](path / name, random.Random(seed))
    told = _error(fleet, path)
    if told is None:
        assert models_of(path) == state.models, seed
        return True
    assert str(path / name) in told, f"{seed}: {told}"
    assert "\n" not in told
    return False


def _error(fleet: Fleet, path: Path) -> str | None:
    """The end of a resumed run: models, or an error of ours; no other exception is clear."""
    try:
        customize(fleet, path, resume=True)
    except RunError as error:
        return str(error)
    return None


def _kind(name: str) -> str:
    """Files that are read in one way; of these one is enough for a quick look."""
    return re.sub(r"cam-\d", "cam", re.sub(r"-\d\.", ".", name))


def test_one_flipped_bit_never_gives_another_model(
    fleet: Fleet, interrupted: Callable[[str], Interrupted], tmp_path: Path
):
    """In a file of every third kind, and of all that can be made anew."""
    early, late = (interrupted(point) for point in ("in a round", "at the end"))
    before = {_kind(name): name for name in early.files}
    after = {_kind(name): name for name in late.files if _kind(name) not in before}
    assert len(before) > 15
    assert len(after) > 2
    places = [(early, name) for name in before.values()] + [(late, name) for name in after.values()]
    anew = {"cloud/elastic.safetensors", "cloud/candidates.json", "events.jsonl", "fleet.yaml"}
    places = [place for number, place in enumerate(places) if place[1] in anew or number % 3 == 0]
    well = {
        name
        for number, (state, name) in enumerate(places)
        if _ends_well(fleet, state, name, "flip", tmp_path / str(number))
    }
    assert anew <= well, "it could have been computed anew"


@pytest.mark.slow
@pytest.mark.parametrize("damage", _DAMAGES)
@pytest.mark.parametrize("point", _POINTS)
def test_no_damage_to_any_file_gives_another_model(
    point: str,
    damage: str,
    fleet: Fleet,
    interrupted: Callable[[str], Interrupted],
    tmp_path: Path,
):
    state = interrupted(point)
    for number, name in enumerate(state.files):
        _ends_well(fleet, state, name, damage, tmp_path / str(number))
