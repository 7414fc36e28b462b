"""A finished run beside what a practitioner does in ten lines: ``versus_probe.py RUN_DIR [...]``.

The rival keeps the reference whole, in int8, and fits a logistic regression to its pooled features
on each device; averaged, the regressions are sent once. Same splits, full test sets, differences
paired by device; several run directories (seeds) are one observation each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from acme_fleet.baselines.probe import measure_probe
from acme_fleet.data.partition import load_world
from acme_fleet.models.checkpoints import load_backbone, read_checkpoint
from acme_fleet.models.pooling import pooling_of_checkpoint
from acme_fleet.report.summary import Summary
from acme_fleet.run_directory import RunDirectory
from acme_fleet.seeding import threads


def compare(path: Path) -> dict[str, Any]:
    run = RunDirectory.open(path)
    fleet, summary = run.fleet, Summary.read(run.finished())
    backbone = pooling = None
    if (checkpoint := fleet.reference.checkpoint) is not None:
        backbone = load_backbone(checkpoint, fleet.reference.revision)
        found = read_checkpoint(checkpoint, fleet.reference.revision)
        pooling = pooling_of_checkpoint(found.folder, found.config.hidden_size)
    with threads(fleet.threads):
        probe = measure_probe(backbone, pooling, load_world(fleet), lambda *_: None)
    devices = [device for device in summary.devices if device.name in probe.alone]
    return {
        "run": str(path),
        "seed": fleet.seed,
        "pooling": probe.pooling,
        "accuracy": fmean(device.accuracy for device in devices),
        "accuracy_probe": fmean(probe.alone[device.name] for device in devices),
        "accuracy_probe_averaged": fmean(probe.averaged[device.name] for device in devices),
        "size_bytes": fmean(device.size_bytes for device in devices),
        "probe_bytes": probe.size_bytes,
        "probe_bytes_int8": probe.size_bytes_int8,
        "by_device": {d.name: [d.accuracy, probe.alone[d.name]] for d in devices},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    rows = [compare(path) for path in arguments.runs]
    for row in rows:
        difference = 100 * (row["accuracy"] - row["accuracy_probe"])
        print(
            f"{row['run']}: {row['accuracy']:.4f} with {row['size_bytes'] / 1e6:.2f} MB, probe "
            f"{row['accuracy_probe']:.4f}, averaged {row['accuracy_probe_averaged']:.4f}, "
            f"{row['probe_bytes_int8'] / 1e6:.2f} MB in int8: {difference:+.1f} points"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
