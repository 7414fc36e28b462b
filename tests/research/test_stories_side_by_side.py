"""Stories in several processes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from acme_fleet.errors import FleetError
from acme_research.frame.bench import Bench, Options
from acme_research.frame.parallel import make_pieces, of_each_seed
from acme_research.frame.story import run


def _first(bench: Bench) -> None:
    bench.piece("first", lambda: {"process": os.getpid(), "seed": bench.seed})


def _second(bench: Bench) -> None:
    bench.piece("second", lambda: bench.has("first"))


def _failing(bench: Bench) -> None:
    if bench.seed == 1:
        raise FleetError("no data here")
    _second(bench)


def _benches(folder: Path) -> list[Bench]:
    options = Options("smoke", 2, None, folder, folder, jobs=2)
    return [Bench(options, seed, "fig7a") for seed in range(2)]


def test_each_stage_finds_what_the_one_before_left_on_disk(tmp_path: Path):
    """And bad input in a process is told like any other."""
    benches = _benches(tmp_path)
    stages = [of_each_seed(work) for work in (_first, _second, _failing)]
    with pytest.raises(FleetError, match="no data here"):
        make_pieces(stages, benches)
    for bench in benches:
        made = bench.piece("first", lambda: pytest.fail("was made already"))
        assert made["seed"] == bench.seed
        assert made["process"] != os.getpid()
        assert bench.piece("second", lambda: pytest.fail("was made already")) is True


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
