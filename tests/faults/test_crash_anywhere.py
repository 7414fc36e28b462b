"""A run that is killed, moved, out of disk or damaged ends with the models of one that is not.

Of any other end there is one kind: an error that names the file. CI tries a few of each fault;
``make test-faults`` as many as a night has room for.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_runs import Faults

_KILLED = -9
_BY_TIME = -27  # SIGPROF


def _seeds(few: int, many: int) -> list[object]:
    """Numbers of draws: a few in CI, the others for the night."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(few, many)]
    return [*range(few), *slow]


@pytest.mark.parametrize("seed", _seeds(4, 50))
def test_killed_at_any_step_on_the_disk(faults: Faults, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    assert faults.run(tmp_path / "run", kill_at=draw.randint(2, faults.steps)).code == _KILLED
    faults.check(tmp_path / "run")


@pytest.mark.parametrize("seed", _seeds(1, 12))
def test_killed_at_any_instant(faults: Faults, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    ended = faults.run(tmp_path / "run", kill_after_s=draw.uniform(0.1, 0.9) * faults.cpu_s)
    assert ended.code in (_BY_TIME, 0)
    faults.check(tmp_path / "run")


@pytest.mark.parametrize("times", [2, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", _seeds(1, 6))
def test_killed_again_and_again_moved_and_at_another_time(
    faults: Faults, tmp_path: Path, seed: int, times: int
) -> None:
    """Each part runs in another directory, days before or after the one before."""
    draw, path = random.Random(100 * times + seed), tmp_path / "run-0"
    for number in range(1, times + 1):
        at, days = draw.randint(2, max(3, faults.steps // times)), draw.choice([-40, 0, 400])
        assert faults.run(path, kill_at=at, clock_days=days).code in (_KILLED, 0)
        moved = tmp_path / f"run-{number}"
        if path.exists():
            path.rename(moved)
        path = moved
    faults.check(path)


@pytest.mark.parametrize("seed", _seeds(1, 12))
def test_a_disk_without_room_is_an_error_that_says_how_to_go_on(
    faults: Faults, tmp_path: Path, seed: int
) -> None:
    largest = [400, 4_000, 12_000, 30_000]
    most = random.Random(seed).choice(largest)
    ended = faults.run(tmp_path / "run", most_bytes=most)
    assert ended.code == 2, ended.told
    assert "cannot write" in ended.told
    faults.check(tmp_path / "run")


# --- damage to what a stopped run has on its disk ---------------------------------------------


def _kind(path: str) -> str:
    """A file's kind: the same for each device and round."""
    return re.sub(r"cam-\d|north|\d+", "N", path)


def _files(run: Path) -> dict[str, Path]:
    """One file of each kind, by kind."""
    names = [p.relative_to(run).as_posix() for p in sorted(run.rglob("*")) if p.is_file()]
    return {_kind(name): Path(name) for name in names if not name.endswith(".lock")}


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    """Cut off, at a line's end where there are lines."""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    whole = b"".join(lines[: draw.randrange(len(lines))]) if len(lines) > 1 else b""
    path.write_bytes(whole if path.suffix == ".jsonl" else content[: len(content) // 2])


def _lose(path: Path, draw: random.Random) -> None:
    path.unlink()


_DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flipped": _flip,
    "cut": _cut,
    "lost": _lose,
}


@pytest.fixture(scope="module")
def stopped(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second round."""
    return faults.stopped(tmp_path_factory.mktemp("stopped") / "run", 0.8)


def _check_damage(
    faults: Faults, run: Path, name: Path, damage: Callable[[Path], None], told: str
) -> None:
    """The same models, or an error that names the file and is gone when the file is back."""
    whole = (run / name).read_bytes()
    damage(run / name)
    ended = faults.run(run)
    assert ended.code in (0, 2), f"{told}: {ended.told}"
    if ended.code == 2:
        assert name.name in ended.told, f"{told}: {ended.told}"
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(whole)
    # Lines of the journal that are gone are told, and in no sum of bytes.
    faults.check(run, *(["traffic"] if name.name.startswith("events.") else []), fault=told)


@pytest.mark.slow
@pytest.mark.parametrize("kind", _DAMAGES)
def test_damage_to_any_kind_of_file(
    faults: Faults, stopped: Path, copied: Callable[[Path], Path], kind: str
) -> None:
    draw = random.Random(kind)
    for name in _files(stopped).values():
        if not (stopped / name).stat().st_size:
            continue
        run = copied(stopped)
        _check_damage(faults, run, name, lambda path: _DAMAGES[kind](path, draw), f"{kind} {name}")
        shutil.rmtree(run)


def test_lost_state_that_others_depend_on_is_noticed(
    faults: Faults, stopped: Path, copied: Callable[[Path], Path]
) -> None:
    """It is not made anew alike: who missed which round is told nowhere else."""
    run, name = copied(stopped), Path("edges/north/rounds.json")
    (run / name).rename(run / "away")
    ended = faults.run(run)
    assert ended.code == 2, ended.told
    assert name.name in ended.told
    (run / "away").rename(run / name)
    faults.check(run)


def test_a_journal_cut_at_a_line_s_end_is_noticed(
    faults: Faults, stopped: Path, copied: Callable[[Path], Path]
) -> None:
    run = copied(stopped)
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    (run / "events.jsonl").write_bytes(b"".join(lines[:-3]))
    assert faults.run(run).code == 0
    # A line that was written when the run was killed may not have been counted.
    assert re.search(
        "lines of events.jsonl that are missing: [23];", (run / "events.jsonl").read_text()
    )
