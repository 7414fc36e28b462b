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

from acme_fleet.cloud.objectives import candidate_quality, candidate_sizes
from acme_fleet.data.partition import load_world
from acme_fleet.pipeline import assemble
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.frame.places import CANDIDATES


def measure(path: Path) -> dict[str, Any]:
    """One run's candidates; its elastic model is read, nothing is trained or changed."""
    run = RunDirectory.open(path)
    fleet = run.fleet
    world = load_world(fleet)
    with tempfile.TemporaryDirectory() as folder:
        cloud = assemble(fleet, world, run, Journal(Path(folder) / "events.jsonl", None))
        reference, elastic = cloud.prepare()
    seen = candidate_quality(
        CLASSIFICATION, elastic, cloud.grid, world.public.validation, lambda done, of: None
    )
    unseen = candidate_quality(
        CLASSIFICATION, elastic, cloud.grid, world.public.test, lambda done, of: None
    )
    columns = {
        "width": cloud.grid.widths,
        "depth": cloud.grid.depths,
        "loss": np.round(seen.losses, 6),
        "accuracy": np.round(seen.scores, 6),
        "test_accuracy": np.round(unseen.scores, 6),
        "size_bytes": candidate_sizes(elastic, cloud.grid, fleet.header),
    }
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
