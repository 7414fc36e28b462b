"""The product − a logistic regression on the whole checkpoint, on real references.

``python -m acme_research.benchmarks.versus_probe --data DATA --references REFERENCES [--case NAME
...]``; the cases are in ``configs/benchmarks/versus_probe.yaml``.

The rival is in every run's own summary: the untouched checkpoint in int8 with a regression on each
device, and the mean of all devices' regressions. Where devices hold one sample of each class the
rival is that mean. In cases with a limit every model, header included, fits into the rival's own
bytes in int8, or a third of them. Same splits, full test sets, paired by device; a seed is one
observation. Runs are kept in ``--runs`` and go on where they stopped.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from acme_fleet.config.fleet import Fleet
from acme_fleet.pipeline import customize
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.runs.summary import Summary
from acme_research.frame.intervals import mean_interval, student_interval, text
from acme_research.frame.record import write_benchmark
from acme_research.frame.references import data_of, parser_on_references
from acme_research.frame.settings import benchmark_config, changed

Settings = dict[str, Any]
CONFIG = benchmark_config("versus_probe")
CASES: dict[str, Settings] = CONFIG["cases"]
RUNTIME = ["int4", "int8", "float32"]


def settings_of(name: str, seed: int, given: argparse.Namespace) -> Settings:
    """A case's fleet."""
    case = CASES[name]
    checkpoint = given.references / case["reference"]
    data = data_of(case["reference"], given.data)
    if "few" in case:
        data["train"] = few(data["train"], given.runs / f"few-{seed}.jsonl", seed, case["few"])
    rate, batch = (1e-4, 16) if case["reference"] == "minilm-l6" else (5e-5, 32)
    layers = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
    distillation = {"epochs": given.epochs, "batch_size": batch, "learning_rate": 3e-4}
    devices = [
        {"name": f"device-{number}", "storage": case["storage"], "precisions": RUNTIME}
        for number in range(case["devices"])
    ]
    own = {
        "name": name.replace(", ", "-").replace(" ", "-"),
        "seed": seed,
        "accelerator": given.accelerator,
        "threads": given.threads,
        "data": data,
        "reference": {
            "checkpoint": checkpoint,
            "training": {"batch_size": batch, "learning_rate": rate},
        },
        "backbone": {"depths": [layers], "distillation": {"training": distillation}},
        "clusters": [{"name": "hub", "devices": devices}],
    }
    return changed(changed(CONFIG["fleet"], own), case["fleet"])


def few(train: Path, out: Path, seed: int, each: int) -> Path:
    """A file with a few sentences of each intent."""
    rows = train.read_text(encoding="utf-8").splitlines()
    of: dict[str, list[str]] = {}
    for number in np.random.default_rng(seed).permutation(len(rows)):
        of.setdefault(json.loads(rows[number])["intent"], []).append(rows[number])
    out.write_text("\n".join(row for rows in of.values() for row in rows[:each]) + "\n")
    return out


def run(name: str, seed: int, given: argparse.Namespace) -> Summary:
    """A case's run, finished or gone on with."""
    fleet = Fleet.parse(settings_of(name, seed, given))
    with LiveStages() as stages:
        return customize(fleet, given.runs / f"{fleet.name}-{seed}", resume=True, observer=stages)


def compared(name: str, summary: Summary) -> Settings:
    """A run beside its rival; ``difference`` in points, the mean over the devices."""
    probe, devices = summary.probe, summary.devices
    assert probe is not None
    alone, averaged = (
        [100 * (getattr(device, which) or 0.0) for device in devices]
        for which in ("accuracy_probe", "accuracy_probe_averaged")
    )
    ours = [100 * device.accuracy for device in devices]
    rival = averaged if "few" in CASES[name] else alone
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


def read_options(doc: str | None, name: str) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_on_references(doc, name)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--epochs", type=int, default=10, help="of each step of distillation")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    return given


def main() -> None:
    given, details = read_options(__doc__, "versus_probe"), {}
    for name in given.case or CASES:
        rows = []
        for seed in given.seeds:
            rows.append(row := compared(name, run(name, seed, given)))
            print(f"{name}, seed {seed}: {row}", flush=True)
        told, goal = mean_interval([row["difference"] for row in rows]), CASES[name]["goal"]
        print(f"{name}: {text(told, 2, 1)}, goal {goal:+.1f}")
        details[name] = {"goal": goal, **told, "runs": rows}
    if not given.case:
        worst = min(details, key=lambda name: details[name]["mean"] - details[name]["goal"])
        goal = details[worst]["goal"]
        ends = student_interval([row["difference"] for row in details[worst]["runs"]])
        low, high = (end - goal for end in ends)
        write_benchmark(
            "versus_probe",
            details[worst]["mean"] - goal,
            (low, high),
            details,
            seeds=given.seeds,
            instead={"unit": f"points above the goal in the worst case, {worst}"},
        )


if __name__ == "__main__":
    main()
