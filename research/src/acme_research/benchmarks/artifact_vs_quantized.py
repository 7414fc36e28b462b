"""The artefact that is chosen − the float32 pick at equal bytes, on a real reference.

``python -m acme_research.benchmarks.artifact_vs_quantized --data DATA --references REFERENCES``

DATA holds ``cifar100``, REFERENCES the checkpoint ``dinov2-small``. One elastic backbone of 20
classes; a cluster for each limit. Ours chooses among widths, hidden sizes, depths and precisions,
the rival among the same in float32 alone: what the product did before precision was an axis. Both
try three finalists and recover the choice. A regression on the public training data is fitted to
what each would ship, at its precision, and tested on the public test data. Beside them stands the
whole reference at the largest precision that fits.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import acme_fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.data.partition import load_world
from acme_fleet.models.probe import pooled_features
from acme_fleet.pipeline import assemble
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.seeding import threads
from acme_fleet.tasks.probe import fit_probe
from acme_research.benchmarks.versus_probe import data_of
from acme_research.frame.intervals import mean_interval, student_interval, text
from acme_research.frame.record import write_benchmark

REFERENCE, CLASSES, GOAL = "dinov2-small", 20, 20.0
LIMITS = (12_000_000, 6_000_000, 3_000_000, 1_500_000)
ARMS = {"ours": ["int4", "int8", "float32"], "float32": ["float32"]}
GRID = {"widths": [0.17, 0.34, 0.5, 0.67, 1.0], "hidden": [0.25, 0.5, 0.75, 1.0]}
DEPTHS = [3, 6, 9, 12]


def fleet_of(seed: int, precisions: list[str], given: argparse.Namespace) -> acme_fleet.Fleet:
    """A cluster of one device for each limit."""
    recovery = {"epochs": given.recovery, "batch_size": 32, "learning_rate": 5e-4}
    return acme_fleet.Fleet.parse(
        {
            "name": "artifacts",
            "seed": seed,
            "accelerator": given.accelerator,
            "threads": given.threads,
            "data": {
                **data_of(REFERENCE, given.data),
                "classes": CLASSES,
                "public": 0.8,
                "partition": {"scheme": "iid"},
            },
            "reference": {
                "checkpoint": given.references / REFERENCE,
                "training": {"epochs": 4, "batch_size": 32, "learning_rate": 5e-5},
            },
            "backbone": {
                **GRID,
                "depths": DEPTHS,
                "precisions": precisions,
                "distillation": {
                    "training": {
                        "epochs": given.epochs,
                        "batch_size": 32,
                        "learning_rate": 3e-4,
                    },
                    "recovery": recovery,
                    "random_subnetworks": 2,
                },
            },
            "selection": {"performance_window": 0.01},
            "header": {"blocks": 2, "cells": 1, "channels": 16},
            "clusters": [
                {
                    "name": f"limit-{limit}",
                    "devices": [
                        {"name": f"d-{limit}", "storage": limit, "precisions": ARMS["ours"]}
                    ],
                }
                for limit in LIMITS
            ],
        }
    )


def chosen(seed: int, arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """The choice of an arm at each limit: its bytes, and a regression on what it would ship."""
    fleet = fleet_of(seed, ARMS[arm], given)
    world, path = load_world(fleet), given.runs / f"{seed}-{arm}"
    begun = (path / "fleet.yaml").exists()
    run = RunDirectory.create(path, fleet, resume=begun)
    shared = given.runs / f"{seed}-ours" / "cloud"
    if arm != "ours" and not begun:  # the same reference and elastic backbone
        wanted = shutil.ignore_patterns("candidates.json", "tried-*", "recovered-*")
        shutil.copytree(shared, run.cloud, ignore=wanted)
    public = world.public

    def accuracy(backbone: Any) -> float:
        way = backbone.config.pooling
        backbone = backbone.eval().to(given.accelerator)
        parts = (public.train, public.validation, public.test)
        read = [
            (pooled_features(backbone, part, [way])[way], part.labels.numpy()) for part in parts
        ]
        return 100 * fit_probe(read[0], read[1], len(world.classes)).accuracy(*read[2])

    found: dict[str, Any] = {}
    with threads(fleet.threads), LiveStages() as stages:
        cloud = assemble(fleet, world, run, Journal(run.events, stages))
        result, elastic = cloud.prepare()
        choices = cloud.match(elastic)

        def judged(variant: Variant) -> dict[str, Any]:
            row = cloud.grid.variants.index(variant)
            alone = cloud.backbones.recovered(elastic, variant)
            return {
                "variant": str(variant),
                "bytes": int(choices[0].objectives[row, 2]),
                "accuracy": accuracy(alone.extract(alone.shape(variant))),
            }

        for choice in choices:
            found[str(choice.storage_bytes)] = judged(cloud.grid.variants[choice.selection.chosen])
        whole = Variant.whole(elastic.sizes.layers)
        found["whole"] = [judged(whole.at(each)) for each in fleet.backbone.precisions]
        found["origin"] = result.origin
    return found


def compared(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both arms of a seed, limit by limit, in points of accuracy."""
    arms = {arm: chosen(seed, arm, given) for arm in ARMS}
    whole = arms["ours"]["whole"]
    rows = {}
    for limit in map(str, LIMITS):
        ours, theirs = (arms[arm][limit] for arm in ARMS)
        fits = [each["accuracy"] for each in whole if each["bytes"] <= int(limit)]
        rows[limit] = {
            "ours": ours,
            "float32": theirs,
            "difference": ours["accuracy"] - theirs["accuracy"],
            "- whole quantised": ours["accuracy"] - max(fits) if fits else None,
        }
        print(f"seed {seed}, {limit} bytes: {rows[limit]}", flush=True)
    mean = float(np.mean([row["difference"] for row in rows.values()]))
    origin = arms["ours"]["origin"]
    return {"seed": seed, "origin": origin, "whole": whole, "limits": rows, "difference": mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6, help="of each step of distillation")
    parser.add_argument("--recovery", type=int, default=15, help="epochs")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/artifact_vs_quantized"))
    given = parser.parse_args()
    given.data, given.references = given.data.resolve(), given.references.resolve()
    given.runs.mkdir(parents=True, exist_ok=True)
    rows = [compared(seed, given) for seed in given.seeds]
    by_limit = {
        limit: mean_interval([row["limits"][limit]["difference"] for row in rows])
        for limit in map(str, LIMITS)
    }
    for limit, told in by_limit.items():
        print(f"{limit} bytes: {text(told, 1, 1)} points")
    differences = [row["difference"] for row in rows]
    write_benchmark(
        name="artifact_vs_quantized",
        value=fmean(differences),
        unit="points of accuracy, ours - the float32 pick at equal bytes, mean over four limits",
        better="higher",
        goal=GOAL,
        rival="the same choice among float32 candidates, with the same recovery",
        seeds=given.seeds,
        interval=student_interval(differences),
        details={"limits": by_limit, "grid": {**GRID, "depths": DEPTHS}, "runs": rows},
    )


if __name__ == "__main__":
    main()
