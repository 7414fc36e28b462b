"""What a backbone for each device buys a mixed cluster in whole runs, over several seeds.

``python experiments/device_matching_runs.py [--seeds 5] [--out runs/device_matching]`` runs the
demo's model and data on one cluster whose devices store from 150 kB to 1.2 MB, with
``selection.matching`` cluster and device. Both runs of a seed start from the same elastic backbone.
Accuracy is that of the shipped models on the devices' full test sets; a seed's mean over its
devices is one observation, and the intervals are Student's over seeds. Beside both stands the first
rival of every run: the pixels, and a regression on each device.

Writes ``results/device_matching_runs.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

import acme_fleet
from acme_fleet.cli import EXAMPLE
from acme_fleet.cost.energy import energy_j
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import Summary
from acme_research.frame.probe import all_devices
from acme_research.frame.story import probe_over_seeds

RESULT = Path(__file__).parent / "results" / "device_matching_runs.json"
STORAGES = ["150 kB", "160 kB", "400 kB", "420 kB", "1.1 MB", "1.2 MB"]
MEASURES = ("accuracy_coarse", "accuracy", "size_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/device_matching"))
    arguments = parser.parse_args()
    rows = [
        {"seed": seed} | {way: observe(arguments.out, seed, way) for way in ("cluster", "device")}
        for seed in range(arguments.seeds)
    ]
    result = {
        "storage": STORAGES,
        "device - cluster": {
            name: difference([row["device"][name] - row["cluster"][name] for row in rows])
            for name in rows[0]["device"]
            if name not in ("backbones", "probe")
        },
        "probe": probe_over_seeds([row["cluster"]["probe"] for row in rows]),
        "by seed": rows,
        "date": datetime.now(UTC).date().isoformat(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["device - cluster"], indent=2))


def observe(out: Path, seed: int, matching: str) -> dict[str, Any]:
    """One run: means over its devices; energy by the devices' own constants."""
    path = out / f"seed-{seed}-{matching}"
    settings = yaml.safe_load(EXAMPLE.read_text())
    settings |= {"seed": seed, "clusters": [{"name": "mixed", "devices": mixed_devices()}]}
    settings["selection"] = settings.get("selection", {}) | {"matching": matching}
    settings["search"] = settings.get("search", {}) | {"rivals": False}
    fleet = acme_fleet.Fleet.parse(settings)
    other = out / f"seed-{seed}-cluster" / "cloud"
    if not path.exists() and other.exists():
        run = RunDirectory.create(path, fleet, resume=False)
        shutil.copytree(other, run.cloud, dirs_exist_ok=True)
    if not (path / "summary.json").exists():
        acme_fleet.customize(fleet, path, resume=(path / "fleet.yaml").exists())
    summary = Summary.read(path / "summary.json")
    print(path, summary.seconds, flush=True)
    means = {name: statistics.fmean(getattr(d, name) for d in summary.devices) for name in MEASURES}
    backbones = {group.name: (group.width, group.depth) for group in summary.clusters}
    energies = [
        float(
            energy_j(
                device.energy,
                *np.array([backbones[told.cluster]]).T,
                summary.reference.patches,
            )[0]
        )
        for told in summary.devices
        for device in fleet.devices
        if device.name == told.name
    ]
    return means | {
        "energy_j": statistics.fmean(energies),
        "searches": len(summary.clusters),
        "upload_bytes": summary.traffic.device_up_bytes,
        "backbones": sorted(set(backbones.values())),
        "probe": all_devices(summary),
    }


def mixed_devices() -> list[dict[str, Any]]:
    return [{"name": f"d{n}", "storage": size} for n, size in enumerate(STORAGES, 1)]


def difference(values: list[float]) -> dict[str, Any]:
    mean, half = statistics.fmean(values), 0.0
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "interval": [mean - half, mean + half]}


if __name__ == "__main__":
    main()
