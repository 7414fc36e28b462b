"""Fig. 8: headers on backbones of several widths and depths."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from acme_research.frame.bench import Bench
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.probe import on_public
from acme_research.frame.story import Findings, Story
from acme_research.stories.headers import accuracies, best_hand_made, draw_kinds, race


def measure(bench: Bench) -> dict[str, Any]:
    cells = bench.extra["header_cells"]
    deepest = max(cells["depths"])
    return {
        "depth": {str(depth): race(bench, 1.0, depth) for depth in cells["depths"]},
        "width": {str(width): race(bench, width, deepest) for width in cells["widths"]},
    }


def find(rows: list[dict[str, Any]]) -> Findings:
    accuracy: dict[str, Any] = {}
    for axis in ("depth", "width"):
        for cell in rows[0][axis]:
            accuracy.setdefault(axis, {})[cell] = accuracies([row[axis][cell] for row in rows])

    def wins(row: dict[str, Any]) -> float:
        cells = [cell for axis in row.values() for cell in axis.values()]
        won = [c["searched"]["test"] > c[best_hand_made(c)]["test"] for c in cells]
        return float(np.mean(won))

    def cnn_gain(pick: Any) -> dict[str, Any]:
        cells = [row["depth"][pick(row["depth"], key=float)] for row in rows]
        cells = [cell for cell in cells if "cnn" in cell]  # none where a small header has no room
        return paired([c["cnn"]["test"] for c in cells], [c["linear"]["test"] for c in cells])

    won = mean_interval([wins(row) for row in rows])
    simple, large = cnn_gain(min), cnn_gain(max)
    return Findings(
        f"searched better than the best hand-made in {text(won, 0)} % of the cells; CNN − linear "
        f"header, points: shallowest backbone {text(simple)}, deepest {text(large)}",
        {"accuracy": accuracy, "cells won": won, "CNN - linear": [simple, large]},
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    places = figure.subplots(1, 2, sharey=True)
    for axes, (axis, told) in zip(places, result["numbers"]["accuracy"].items(), strict=True):
        draw_kinds(axes, told, result.get("probe"), axis)
    places[-1].legend()


STORY = Story(
    "fig8",
    "headers on backbones of several widths and depths",
    "searched far above hand-made ones everywhere; CNN better than linear on simple backbones, "
    "linear better on complex ones",
    measure,
    find,
    draw,
    on_public,
)
