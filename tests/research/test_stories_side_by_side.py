"""Stories in several processes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import cloudpickle
import pytest

from acme_fleet.errors import FleetError
from acme_research.frame.bench import Bench, Options
from acme_research.frame.parallel import make_pieces, of_each_seed
from acme_research.frame.story import run
from acme_research.stories import contest


def _first(bench: Bench) -> None:
    bench.piece("first", lambda: {"process": os.getpid(), "seed": bench.seed})


def _second(bench: Bench) -> None:
    bench.piece("second", lambda: bench.has("first"))


def _failing(bench: Bench) -> None:
    if bench.seed == 1:
        raise FleetError("no data here")
    _second(bench)


def _benches(folder: Path, jobs: int) -> list[Bench]:
    options = Options("smoke", 2, None, folder, folder, jobs=jobs)
    return [Bench(options, seed, "fig7a") for seed in range(2)]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_stage_finds_what_the_one_before_left_on_disk(jobs: int, tmp_path: Path):
    """And bad input in a process is told like any other."""
    benches = _benches(tmp_path, jobs)
    stages = [of_each_seed(work) for work in (_first, _second, _failing)]
    with pytest.raises(FleetError, match="no data here"):
        make_pieces(stages, benches)
    for bench in benches:
        made = bench.piece("first", lambda: pytest.fail("was made already"))
        assert made["seed"] == bench.seed
        assert (made["process"] == os.getpid()) == (jobs == 1)
        assert bench.piece("second", lambda: pytest.fail("was made already")) is True


def test_parts_can_be_sent_to_other_processes(tmp_path: Path):
    """With the options of the bench; the rest is found on disk."""
    benches = _benches(tmp_path, 2)
    for bench in benches:
        bench.extra["rivals"] = [name for name in bench.extra["rivals"] if name != "dynabert"]
    for stage in contest.STAGES:
        work = stage(benches)
        assert work
        for bench, part in work:
            sent = cloudpickle.dumps((part, bench.options, bench.seed, bench.story))
            assert cloudpickle.loads(sent)[1:] == (bench.options, bench.seed, "fig7a")


@pytest.mark.slow
def test_how_many_processes_there_are_decides_nothing(tmp_path: Path):
    """BERT has dropout, and its contests are of two storage limits, side by side."""
    story = importlib.import_module("acme_research.stories.clinc150").STORY
    alone, many = (
        run(story, Options("smoke", 1, None, tmp_path / f"{jobs}", tmp_path, jobs=jobs))
        for jobs in (1, 2)
    )
    assert alone["seeds"] == many["seeds"]
    assert alone["settings"] == many["settings"]
