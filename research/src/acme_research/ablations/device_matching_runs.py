"""The gain of a backbone for each device of a mixed cluster in whole runs, over several seeds.

``python -m acme_research.ablations.device_matching_runs [--seeds 5] [--out runs/device_matching]``
runs the model and data of ``examples/digits.yaml`` on one cluster whose devices store from 150 kB
to 1.2 MB, with ``selection.matching`` cluster and device. Both runs of a seed start from the same
elastic backbone. Accuracy is that of the shipped models on the devices' full test sets; a seed's
mean over its devices is one observation, and the intervals are Student's over seeds. Beside both
stands the first rival of every run: the pixels, and a regression on each device.

Writes ``results/device_matching_runs.json``.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import acme_fleet
from acme_fleet.config.devices import Energy
from acme_fleet.cost.energy import energy_j
from acme_fleet.cost.variant import Variant
from acme_research.frame.intervals import mean_interval
from acme_research.frame.places import EXAMPLES
from acme_research.frame.probe import all_devices, probe_over_seeds
from acme_research.frame.record import write_result
from acme_research.frame.runs import finished_run, parser_of, same_cloud

STORAGES = ["150 kB", "160 kB", "400 kB", "420 kB", "1.1 MB", "1.2 MB"]
MEASURES = ("accuracy_coarse", "accuracy", "size_bytes")


def main() -> None:
    arguments = parser_of(__doc__, "device_matching").parse_args()
    rows: list[dict[str, Any]] = [
        {"seed": seed} | {way: observe(arguments.out, seed, way) for way in ("cluster", "device")}
        for seed in range(arguments.seeds)
    ]
    result = {
        "storage": STORAGES,
        "device - cluster": {
            name: mean_interval([row["device"][name] - row["cluster"][name] for row in rows])
            for name in rows[0]["device"]
            if name not in ("backbones", "probe")
        },
        "probe": probe_over_seeds([row["cluster"]["probe"] for row in rows]),
        "by seed": rows,
    }
    print(json.dumps(result["device - cluster"], indent=2))
    write_result("device_matching_runs", result)


def observe(out: Path, seed: int, matching: str) -> dict[str, Any]:
    """One run: means over its devices; energy by the devices' own constants."""
    path = out / f"seed-{seed}-{matching}"
    settings = yaml.safe_load((EXAMPLES / "digits.yaml").read_text())
    settings |= {"seed": seed, "clusters": [{"name": "mixed", "devices": mixed_devices()}]}
    settings["selection"] = settings.get("selection", {}) | {"matching": matching}
    settings["search"] = settings.get("search", {}) | {"rivals": False}
    fleet = acme_fleet.Fleet.parse(settings)
    begin = same_cloud(out / f"seed-{seed}-cluster") if matching == "device" else None
    summary = finished_run(fleet, path, begin)
    print(path, summary.seconds, flush=True)
    means = {name: statistics.fmean(getattr(d, name) for d in summary.devices) for name in MEASURES}
    chosen = {group.name: group.variant for group in summary.clusters}
    energies = [
        energy_of(device.energy, chosen[told.cluster], summary.reference.patches)
        for told in summary.devices
        for device in fleet.devices
        if device.name == told.name
    ]
    return means | {
        "energy_j": statistics.fmean(energies),
        "searches": len(summary.clusters),
        "upload_bytes": summary.traffic.device_up_bytes,
        "backbones": sorted({(variant.work, variant.depth) for variant in chosen.values()}),
        "probe": all_devices(summary),
    }


def energy_of(constants: Energy, variant: Variant, patches: int) -> float:
    width, depth = np.array([variant.work]), np.array([variant.depth])
    return float(energy_j(constants, width, depth, patches, variant.precision)[0])


def mixed_devices() -> list[dict[str, Any]]:
    return [{"name": f"d{n}", "storage": size} for n, size in enumerate(STORAGES, 1)]


if __name__ == "__main__":
    main()
