"""Uploads of devices ÷ their raw data as stored, on the CIFAR-20 example, and the cost of 8 bits.

``python -m acme_research.benchmarks.upload_ratio --data PATH/TO/cifar100``. Each seed runs phases 1
and 2-1 once; phase 2-2 starts from there with either kind of feature sample. Value: the mean ratio
with 8 bits, at an accuracy that does not differ from half precision's (the difference is in
``details``). A seed takes 15 minutes on a core; with ``--runs`` a stopped start goes on.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import acme_fleet
from acme_fleet.runs.summary import Summary
from acme_research.frame.intervals import mean_interval, student_interval
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import cifar20, finished_run, same_search

KINDS: dict[str, dict[str, Any]] = {
    "half precision": {},
    "8 bits": {"sketch_bits": 8},
}


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
    found = {kind: [] for kind in KINDS}
    for seed in arguments.seeds:
        for kind in KINDS:
            summary = run(arguments.data, arguments.runs, seed, kind)
            found[kind].append(
                (summary.traffic.upload_ratio, fmean(d.accuracy for d in summary.devices))
            )
            print(f"seed {seed}, {kind}: ratio {found[kind][-1][0]:.5f}, {found[kind][-1][1]:.4f}")
    ratios = {kind: [ratio for ratio, _ in rows] for kind, rows in found.items()}
    details: dict[str, Any] = {"features": {}}
    for kind, rows in found.items():
        lost = [100 * (b - a) for (_, a), (_, b) in zip(rows, found["half precision"], strict=True)]
        details["features"][kind] = {
            "ratio": fmean(ratios[kind]),
            "accuracy": fmean(accuracy for _, accuracy in rows),
            "points lost": (told := mean_interval(lost, 3))["mean"],
            "interval": told["interval"],
        }
        print(f"{kind:24} {details['features'][kind]}")
    write_benchmark(
        "upload_ratio",
        fmean(ratios["8 bits"]),
        student_interval(ratios["8 bits"]),
        details,
        seeds=arguments.seeds,
    )


if __name__ == "__main__":
    main()
