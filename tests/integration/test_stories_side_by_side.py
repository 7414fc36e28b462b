"""Stories in several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "experiments"))

from reproduction.bench import Bench, Options
from reproduction.parallel import Part, make_pieces

from acme_fleet.errors import FleetError


def _first(bench: Bench) -> None:
    bench.piece("first", lambda: {"process": os.getpid(), "seed": bench.seed})


def _second(bench: Bench) -> None:
    bench.piece("second", lambda: bench.has("first"))


def _failing(bench: Bench) -> None:
    if bench.seed == 1:
        raise FleetError("no data here")
    _first(bench)


def _benches(folder: Path) -> list[Bench]:
    options = Options("smoke", 2, None, folder, folder, jobs=2)
    return [Bench(options, seed, "fig7a") for seed in range(2)]


def test_each_stage_finds_what_the_one_before_left_on_disk(tmp_path: Path):
    benches = _benches(tmp_path)
    stages: Sequence[Sequence[Part]] = ([_first], [_second])
    make_pieces([lambda bench, s=stage: s for stage in stages], benches)
    for bench in benches:
        made = bench.piece("first", lambda: pytest.fail("was made already"))
        assert made["seed"] == bench.seed
        assert made["process"] != os.getpid()
        assert bench.piece("second", lambda: pytest.fail("was made already")) is True


def test_bad_input_in_a_process_is_told_like_any_other(tmp_path: Path):
    with pytest.raises(FleetError, match="no data here"):
        make_pieces([lambda bench: [_failing]], _benches(tmp_path))
