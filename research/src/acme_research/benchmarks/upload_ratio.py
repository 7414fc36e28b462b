"""Uploads of devices ÷ their raw data as stored, on the CIFAR-20 example, and the cost of 8 bits.

``python -m acme_research.benchmarks.upload_ratio --data PATH/TO/cifar100``. Each seed runs phases 1
and 2-1 once; phase 2-2 starts from there with either kind of feature sample. Value: the mean ratio
with 8 bits, at an accuracy that does not differ from half precision's (the difference is in
``details``). A seed takes 15 minutes on a core; with ``--runs`` a stopped start goes on.
"""

import argparse
import itertools
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import acme_fleet
from acme_fleet.runs.summary import Summary
from acme_research.frame.intervals import mean_interval, student_interval
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import cifar20, finished_run, same_search

KINDS: dict[str, dict[str, Any]] = {"half precision": {}, "8 bits": {"sketch_bits": 8}}


def fleet_of(data: Path, seed: int, privacy: dict[str, Any]) -> acme_fleet.Fleet:
    settings = cifar20(data, seed)
    settings["search"]["rivals"] = False  # they change nothing that ships
    settings["personalization"]["privacy"] = privacy
    return acme_fleet.Fleet.parse(settings)


def run(data: Path, runs: Path, seed: int, kind: str) -> Summary:
    """A seed's run with one kind of feature sample; others than the first start where it did."""
    first, own = (
        runs / f"seed-{seed}-{name.replace(' ', '-')}" for name in (next(iter(KINDS)), kind)
    )
    begin = None if own == first else same_search(first)
    return finished_run(fleet_of(data, seed, KINDS[kind]), own, begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/cifar100"))
    parser.add_argument("--runs", type=Path, default=Path("runs/upload_ratio"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if not arguments.data.exists():
        print(f"skipped: no CIFAR-100 in {arguments.data}; name its folder with --data")
        return
    rows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for seed, kind in itertools.product(arguments.seeds, KINDS):
        summary = run(arguments.data, arguments.runs, seed, kind)
        accuracy = fmean(device.accuracy for device in summary.devices)
        rows[kind].append((summary.traffic.upload_ratio, accuracy))
        print(f"seed {seed}, {kind}: ratio {summary.traffic.upload_ratio:.5f}, {accuracy:.4f}")
    columns = {kind: list(zip(*each, strict=True)) for kind, each in rows.items()}
    details: dict[str, Any] = {}
    for kind, (ratios, accuracies) in columns.items():
        told = mean_interval(100 * np.subtract(columns["half precision"][1], accuracies), 3)
        details[kind] = {"ratio": fmean(ratios), "accuracy": fmean(accuracies)}
        details[kind] |= {"points lost": told["mean"], "interval": told["interval"]}
        print(f"{kind:24} {details[kind]}")
    ratios = columns["8 bits"][0]
    write_benchmark(
        "upload_ratio",
        fmean(ratios),
        student_interval(ratios),
        {"features": details},
        seeds=arguments.seeds,
    )


if __name__ == "__main__":
    main()
