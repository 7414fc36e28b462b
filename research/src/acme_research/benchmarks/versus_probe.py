"""The product − a logistic regression on the whole checkpoint, on real references.

``python -m acme_research.benchmarks.versus_probe --data DATA --references REFERENCES [--case NAME
...]``

DATA holds ``clinc150`` and ``cifar100``, REFERENCES the checkpoints ``minilm-l6`` and
``dinov2-small``. The rival is in every run's own summary: the untouched checkpoint in int8 with a
regression on each device, and the mean of all devices' regressions. Where devices hold one sample
of each class the rival is that mean. In cases with a limit every model, header included, fits into
the rival's own bytes in int8, or a third of them. Same splits, full test sets, paired by device; a
seed is one observation. Runs are kept in ``--runs`` and go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import acme_fleet
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.runs.summary import Summary
from acme_research.frame.intervals import mean_interval, student_interval
from acme_research.frame.intervals import text as text_of
from acme_research.frame.record import write_benchmark

Settings = dict[str, Any]
RUNTIME = ["int4", "int8", "float32"]
DOMAINS = {"scheme": "natural", "column": "domain"}
FEW = 27  # of each intent: four for the cloud, three for the edge, and for each of ten devices
# one to train on and one to validate


@dataclass(frozen=True)
class Case:
    """Data and devices, and how far the product may be behind the rival (``goal``, points).

    ``backbone`` has the candidates, ``storage`` the limit of every device in bytes.
    """

    reference: str
    backbone: Settings
    goal: float
    devices: int
    data: Settings
    storage: int = 150_000_000
    averaged: bool = False
    personalization: Settings = field(default_factory=dict)


WHOLE: Settings = {"widths": [1.0]}
HALF: Settings = {"widths": [0.5]}
INT: Settings = WHOLE | {"precisions": ["int4", "int8"]}
SMALLER: Settings = {"precisions": ["int4"], "widths": [0.5, 0.75], "hidden": [0.75, 1.0]}
TEXT_INT8, IMAGES_INT8 = 22_887_724, 21_943_316  # bytes of the rival


def text(backbone: Settings, goal: float, storage: int = 150_000_000) -> Case:
    data = {"public": 0.1, "partition": DOMAINS}
    return Case("minilm-l6", backbone, goal, 10, data, storage)


def images(
    classes: int, each: int, backbone: Settings, goal: float, storage: int = 150_000_000
) -> Case:
    partition = {"scheme": "pathological", "classes_per_device": each}
    data = {"classes": classes, "public": 0.4, "partition": partition}
    return Case("dinov2-small", backbone, goal, 4, data, storage)


CASES = {
    "a domain each": text(WHOLE, 0.0),
    "a domain each, half": text(HALF, -1.0, 75_000_000),
    "a domain each, its bytes": text(INT | {"vocabulary": 12_000}, -0.2, TEXT_INT8),
    "a domain each, a third": text(INT | {"vocabulary": 4_500}, -1.0, TEXT_INT8 // 3),
    "a sample of each class": Case(
        "minilm-l6",
        WHOLE,
        2.0,
        10,
        {"public": 4 / FEW, "partition": {"scheme": "iid"}, "validation": 0.5},
        averaged=True,
        personalization={
            "rounds": 7,
            "local": {"epochs": 5, "batch_size": 32, "learning_rate": 0.004},
        },
    ),
    "5 classes each": images(20, 5, WHOLE, 0.0),
    "5 classes each, half": images(20, 5, HALF, -3.0, 50_000_000),
    "5 classes each, its bytes": images(20, 5, INT | {"widths": [0.75, 1.0]}, -0.2, IMAGES_INT8),
    "5 classes each, a third": images(20, 5, SMALLER, -1.0, IMAGES_INT8 // 3),
    "20 classes each": images(40, 20, WHOLE, 0.0),
    "20 classes each, half": images(40, 20, HALF, -3.0, 50_000_000),
}


def data_of(reference: str, folder: Path) -> Settings:
    """The data set of a checkpoint: CLINC150 for the text model, else a third of CIFAR-100."""
    if reference == "minilm-l6":
        train, test = (folder / "clinc150" / f"{part}.jsonl" for part in ("train", "test"))
        columns = {"source": "text", "text_column": "text", "label_column": "intent"}
        return {**columns, "max_tokens": 24, "train": train, "test": test}
    test, train, *_ = sorted((folder / "cifar100").glob("*.parquet"))
    columns = {"source": "parquet", "image_column": "img", "label_column": "fine_label"}
    return {**columns, "image_size": 56, "train": train, "test": test}


def settings_of(name: str, seed: int, given: argparse.Namespace) -> Settings:
    case = CASES[name]
    checkpoint = given.references / case.reference
    data = data_of(case.reference, given.data)
    if case.averaged:
        data["train"] = few(data["train"], given.runs / f"few-{seed}.jsonl", seed)
    rate, batch = (1e-4, 16) if case.reference == "minilm-l6" else (5e-5, 32)
    layers = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
    distillation = {"epochs": given.epochs, "batch_size": batch, "learning_rate": 3e-4}
    return {
        "name": name.replace(", ", "-").replace(" ", "-"),
        "seed": seed,
        "accelerator": given.accelerator,
        "threads": given.threads,
        "data": {**data, "edge_share": 0.15, **case.data},
        "reference": {
            "checkpoint": checkpoint,
            "training": {"epochs": 4, "batch_size": batch, "learning_rate": rate},
        },
        "backbone": {
            "depths": [layers],
            "distillation": {"training": distillation},
            **case.backbone,
        },
        "header": {"blocks": 2, "cells": 1, "channels": 32},
        "search": {"steps": 20, "rivals": False},
        "personalization": {"mix": "both", "classifier": "holders", **case.personalization},
        "clusters": [
            {
                "name": "hub",
                "devices": [
                    {"name": f"device-{n}", "storage": case.storage, "precisions": RUNTIME}
                    for n in range(case.devices)
                ],
            }
        ],
    }


def few(train: Path, out: Path, seed: int) -> Path:
    """A file with a few sentences of each intent."""
    rows = train.read_text(encoding="utf-8").splitlines()
    of: dict[str, list[str]] = {}
    for number in np.random.default_rng(seed).permutation(len(rows)):
        of.setdefault(json.loads(rows[number])["intent"], []).append(rows[number])
    out.write_text("\n".join(row for rows in of.values() for row in rows[:FEW]) + "\n")
    return out


def run(name: str, seed: int, given: argparse.Namespace) -> Summary:
    fleet = acme_fleet.Fleet.parse(settings_of(name, seed, given))
    with LiveStages() as stages:
        return acme_fleet.customize(
            fleet, given.runs / f"{fleet.name}-{seed}", resume=True, observer=stages
        )


def compared(name: str, summary: Summary) -> Settings:
    """A run beside its rival; ``difference`` in points, the mean over the devices."""
    probe, devices = summary.probe, summary.devices
    assert probe is not None
    alone, averaged = (
        [100 * (getattr(device, which) or 0.0) for device in devices]
        for which in ("accuracy_probe", "accuracy_probe_averaged")
    )
    ours = [100 * device.accuracy for device in devices]
    rival = averaged if CASES[name].averaged else alone
    return {
        "seed": summary.seed,
        "difference": fmean(np.subtract(ours, rival)),
        "accuracy": fmean(ours),
        "probe": fmean(alone),
        "probe averaged": fmean(averaged),
        "linear": fmean(100 * device.accuracy_linear for device in devices),
        "reference": f"{summary.reference.origin}, {summary.reference.pooling}",
        "bytes": max(device.size_bytes for device in devices),
        "probe bytes": [probe.size_bytes, probe.size_bytes_int8],
        "seconds": round(sum(summary.seconds.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of each step of distillation")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/versus_probe"))
    given = parser.parse_args()
    given.data, given.references = given.data.resolve(), given.references.resolve()
    given.runs.mkdir(parents=True, exist_ok=True)
    given.runs = given.runs.resolve()
    details = {}
    for name in given.case or CASES:
        rows = []
        for seed in given.seeds:
            rows.append(row := compared(name, run(name, seed, given)))
            print(
                f"{name}, seed {seed}: {row['accuracy']:.1f} %, probe {row['probe']:.1f}, averaged "
                f"{row['probe averaged']:.1f}: {row['difference']:+.1f} points, "
                f"{row['seconds']} s, {row['reference']}",
                flush=True,
            )
        told = mean_interval([row["difference"] for row in rows])
        print(f"{name}: {text_of(told, 2, 1)}, goal {CASES[name].goal:+.1f}")
        details[name] = {"goal": CASES[name].goal, **told, "runs": rows}
    if not given.case:
        worst = min(details, key=lambda name: details[name]["mean"] - details[name]["goal"])
        margin = details[worst]["mean"] - CASES[worst].goal
        ends = student_interval([row["difference"] for row in details[worst]["runs"]])
        low, high = (end - CASES[worst].goal for end in ends)
        write_benchmark(
            name="versus_probe",
            value=margin,
            unit=f"points above the goal in the worst case, {worst}",
            better="higher",
            goal=0.0,
            rival="a logistic regression on the whole checkpoint's pooled features, in int8",
            seeds=given.seeds,
            interval=(low, high),
            details=details,
        )


if __name__ == "__main__":
    main()
