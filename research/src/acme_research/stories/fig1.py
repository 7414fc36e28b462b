"""Fig. 1: size, architecture, accuracy and energy of every sub-network of one model."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.models.features import patches
from acme_research.frame.bench import Bench
from acme_research.frame.drawing import level
from acme_research.frame.intervals import mean_interval, rank_correlation, text
from acme_research.frame.probe import ON_PUBLIC, on_public
from acme_research.frame.story import Findings, Story

ALIKE = 0.1  # sizes that differ by at most this share are alike


def measure(bench: Bench) -> dict[str, Any]:
    table = bench.candidates()
    tokens = patches(bench.elastic.classifier.backbone.config, bench.world.public.test.inputs)
    devices = [device.energy for device in bench.fleet.clusters[0].devices]
    width, depth = np.array(table["width"]), np.array(table["depth"])
    energy = worst_energy_j(devices, width, depth, tokens)
    size, accuracy = np.array(table["size_bytes"]), np.array(table["test_accuracy"])
    near = np.abs(np.log(size[:, None] / size[None, :])) <= np.log1p(ALIKE)
    gaps = np.where(near, np.abs(accuracy[:, None] - accuracy[None, :]), 0)
    larger_worse = (size[:, None] > size[None, :]) & (accuracy[:, None] < accuracy[None, :])
    pairs = len(size) * (len(size) - 1) / 2
    return {
        **table,
        "energy_j": energy.tolist(),
        "largest gap at like size": float(gaps.max()),
        "pairs whose larger model is worse": float(larger_worse.sum() / pairs),
        "rank correlation of size and accuracy": rank_correlation(size, accuracy),
        "test samples": len(bench.test),
    }


def find(rows: list[dict[str, Any]]) -> Findings:
    keys = (
        "largest gap at like size",
        "pairs whose larger model is worse",
        "rank correlation of size and accuracy",
    )
    numbers = {key: mean_interval([row[key] for row in rows]) for key in keys}
    return Findings(
        f"models of like size (within 10 %) differ by up to {text(numbers[keys[0]])} points; of "
        f"two models the larger is worse in {text(numbers[keys[1]], 0)} % of pairs; rank "
        f"correlation of size and accuracy {text(numbers[keys[2]], 2, 1)}",
        numbers,
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    rows = result["seeds"]
    accuracy = 100 * np.mean([row["test_accuracy"] for row in rows], axis=0)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, unit, factor in (
        (left, "size_bytes", "size, MB", 1e-6),
        (right, "energy_j", "energy of the cluster's worst device, J", 1),
    ):
        x, areas = factor * np.array(rows[0][key]), 20 + 60 * np.array(rows[0]["width"])
        points = axes.scatter(x, accuracy, c=rows[0]["depth"], s=areas)
        axes.set_xlabel(unit)
        level(axes, result.get("probe"), ON_PUBLIC)
        axes.grid(alpha=0.3)
    left.set_ylabel("test accuracy, %")
    figure.colorbar(points, ax=right, label="depth (area: width)")


STORY = Story(
    "fig1",
    "size, architecture, accuracy and energy of sub-networks",
    "a larger model is not always better; up to 4.9 points between architectures of like size",
    measure,
    find,
    draw,
    on_public,
)
