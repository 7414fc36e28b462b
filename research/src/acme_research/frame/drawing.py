"""Bars and lines with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes


def bars(axes: Axes, told: dict[str, dict[str, Any]], label: str, factor: float = 100.0) -> None:
    """A bar with its interval for each name."""
    places = np.arange(len(told))
    means = [factor * value["mean"] for value in told.values()]
    colors, errors = [f"C{i % 10}" for i in places], _errors(told.values(), factor)
    axes.bar(places, means, color=colors, yerr=errors)
    axes.set_xticks(places, list(told), rotation=30, ha="right")
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)


def line(
    axes: Axes,
    x: Sequence[float],
    told: Sequence[dict[str, Any]],
    label: str,
    factor: float = 100.0,
) -> None:
    """Means over x with their intervals."""
    means = [factor * value["mean"] for value in told]
    axes.errorbar(x, means, yerr=_errors(told, factor), marker="o", capsize=2, label=label)
    axes.grid(alpha=0.3)


def level(axes: Axes, probe: dict[str, Any] | None, place: str, start: float = 0.0) -> None:
    """A line across for each way of the first rival of every run at a place of the story.

    ``probe`` is as in a result file, none in one of before it was measured; ``start`` is an
    accuracy that is taken off, where the others are gains.
    """
    if probe is None:
        return
    ways = probe["places"][place]["accuracy"]
    for style, (way, value) in zip(("--", ":"), ways.items(), strict=False):
        height = 100 * (value["mean"] - start)
        axes.axhline(height, color="black", linestyle=style, label=f"probe: {way}")
    axes.legend(fontsize=6)


def _errors(told: Any, factor: float) -> list[float]:
    return [
        factor * (value["interval"][1] - value["mean"]) if value["interval"] else 0.0
        for value in told
    ]
