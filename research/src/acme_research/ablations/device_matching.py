"""The gain of a backbone for each device over one for its cluster, on measured candidates.

Clusters of ten devices whose storage and constants of Eq. 2 are drawn at random, for the
candidates of ``research/results/candidates.json``. A cluster's choice obeys its smallest device
and counts its worst energy; a device's own obeys its own limit and energy. What both get is
compared on the device itself: energy, loss, and accuracy on test data that no choice saw.

    python -m acme_research.ablations.device_matching

writes ``results/device_matching.json``: mean differences, device minus cluster, with 95 %
intervals over the drawn clusters. The runs are few: nothing is said about other runs. Devices
are made up here; ``device_matching_runs.py`` has real ones, and the first rival of every run.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np

from acme_fleet.config.devices import Energy
from acme_fleet.cost.energy import energy_j, worst_energy_j
from acme_fleet.selection.choice import match, match_many
from acme_research.frame.intervals import bootstrap_interval
from acme_research.frame.places import CANDIDATES
from acme_research.frame.record import write_result

TABLES = json.loads(CANDIDATES.read_text())
DEVICES, DRAWS = 10, 40
WINDOWS = [0.02, 0.05, 0.1]
SMALLEST = {"alike, 70-100 %": 0.7, "mixed, 20-100 %": 0.2}  # storage, of the largest candidate


def draw_devices(generator: np.random.Generator) -> list[Energy]:
    low, high = (1, 0.1, 0.005, 0.001), (4, 1, 0.05, 0.01)
    return [
        Energy(power_w=p, power_per_layer_w=pl, latency_s=t, latency_per_layer_s=tl)
        for p, pl, t, tl in generator.uniform(low, high, (DEVICES, 4))
    ]


def one_draw(run: dict[str, Any], share: float, window: float, seed: int) -> dict[str, float]:
    """Means over one cluster's devices, device's choice minus the cluster's."""
    generator = np.random.default_rng(seed)
    table = {name: np.array(column) for name, column in run["candidates"].items()}
    width, depth, sizes = table["width"], table["depth"], table["size_bytes"]
    devices = draw_devices(generator)
    limits = generator.uniform(share, 1, DEVICES) * sizes.max()
    worst = worst_energy_j(devices, width, depth, run["patches"])
    together = match(
        np.column_stack([table["loss"], worst, sizes]), sizes, limits.min(), window, "cluster"
    ).chosen
    own = np.stack([energy_j(device, width, depth, run["patches"]) for device in devices])
    tables = np.stack([np.column_stack([table["loss"], energy, sizes]) for energy in own])
    alone = match_many(tables, sizes, limits, np.arange(DEVICES), window)
    rows = np.arange(DEVICES)
    return {
        "share of devices with another backbone": float(np.mean(alone != together)),
        "loss": float((table["loss"][alone] - table["loss"][together]).mean()),
        "test accuracy": float(
            (table["test_accuracy"][alone] - table["test_accuracy"][together]).mean()
        ),
        "energy, share of the cluster's": float(
            (own[rows, alone] / own[rows, together] - 1).mean()
        ),
        "size, share of the cluster's": float((sizes[alone] / sizes[together] - 1).mean()),
    }


def interval(values: np.ndarray) -> list[float]:
    """Mean and its 95 % bootstrap interval."""
    low, high = bootstrap_interval(lambda picks: values[picks].mean(axis=1), len(values))
    return [round(float(x), 4) for x in (values.mean(), low, high)]


def main() -> None:
    results: dict[str, Any] = {}
    fleets = sorted({run["fleet"] for run in TABLES.values()})
    for fleet, (kind, share), window in itertools.product(fleets, SMALLEST.items(), WINDOWS):
        runs = [run for run in TABLES.values() if run["fleet"] == fleet]
        draws = [one_draw(run, share, window, seed) for run in runs for seed in range(DRAWS)]
        key = f"{fleet}, storage {kind}, window {window:g}"
        results[key] = {name: interval(np.array([d[name] for d in draws])) for name in draws[0]}
        print(key, {name: value[0] for name, value in results[key].items()})
    write_result("device_matching", results)


if __name__ == "__main__":
    main()
