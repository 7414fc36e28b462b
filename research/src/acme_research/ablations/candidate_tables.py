"""Candidates of finished runs with measured loss, accuracy and size, for the benchmarks.

    python -m acme_research.ablations.candidate_tables NAME=RUN_DIR …

writes ``research/results/candidates.json``. Loss and accuracy on the public validation data are
what a choice may look at; accuracy on the public test data, which no choice sees, is beside them.
Energy is left out: it is Eq. 1-2 of constants, which a benchmark varies.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.data.partition import load_world
from acme_fleet.pipeline import assemble
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_research.frame.places import CANDIDATES
from acme_research.frame.runs import candidate_columns


def measure(path: Path) -> dict[str, Any]:
    """One run's candidates; its elastic model is read, nothing is trained or changed."""
    run = RunDirectory.open(path)
    fleet = run.fleet
    world = load_world(fleet)
    with tempfile.TemporaryDirectory() as folder:
        cloud = assemble(fleet, world, run, Journal(Path(folder) / "events.jsonl", None))
        reference, elastic = cloud.prepare()
    columns = candidate_columns(
        fleet, cloud.grid, elastic, world.public.validation, world.public.test
    )
    for name in ("loss", "accuracy", "test_accuracy"):
        columns[name] = np.round(columns[name], 6)
    return {
        "fleet": fleet.name,
        "seed": fleet.seed,
        "reference_accuracy": reference.accuracy,
        "patches": reference.patches,
        "validation_samples": len(world.public.validation),
        "test_samples": len(world.public.test),
        "candidates": {name: column.tolist() for name, column in columns.items()},
    }


def main() -> None:
    tables = {}
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        tables[name] = measure(Path(path))
        print(name, tables[name]["test_samples"], "test samples")
    CANDIDATES.write_text(json.dumps(tables) + "\n")


if __name__ == "__main__":
    main()
