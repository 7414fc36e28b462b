"""Means over seeds with Student's 95 % interval, and intervals by drawing again."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Numbers = Sequence[float] | np.ndarray


def student_interval(values: Numbers) -> tuple[float, float]:
    """Student's 95 % interval of the mean; the mean itself for a single value."""
    mean, half = statistics.fmean(values), 0.0
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def mean_interval(values: Numbers, digits: int | None = None) -> dict[str, Any]:
    """Mean with Student's 95 % interval, rounded to ``digits``; none for a single value."""

    def rounded(value: float) -> float:
        return value if digits is None else round(value, digits)

    interval = [rounded(end) for end in student_interval(values)] if len(values) > 1 else None
    return {"mean": rounded(statistics.fmean(values)), "interval": interval, "n": len(values)}


def paired(ours: Numbers, theirs: Numbers) -> dict[str, Any]:
    """Mean difference with its interval, and the p-value of the paired t-test."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    told = mean_interval(differences)
    if len(differences) > 1 and statistics.stdev(differences) > 0:
        told["p"] = float(stats.ttest_rel(ours, theirs).pvalue)
    return told


def rank_correlation(x: Numbers, y: Numbers) -> float:
    """Spearman's ρ; 0 where one of them is constant, and has no order."""
    if len({*x}) < 2 or len({*y}) < 2:
        return 0.0
    found: Any = stats.spearmanr(x, y)
    return float(found.statistic)


def text(told: dict[str, Any], digits: int = 1, factor: float = 100.0) -> str:
    """A mean with its interval, for a line."""
    mean = f"{factor * told['mean']:.{digits}f}"
    if told["interval"] is None:
        return mean
    low, high = (f"{factor * x:.{digits}f}" for x in told["interval"])
    return f"{mean} [{low}, {high}]"


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray], count: int, draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of a statistic of ``count`` observations that are drawn again.

    ``statistic`` takes drawn indices, shape ``(draws, count)``, and has a value for each draw.
    """
    picks = np.random.default_rng(0).integers(0, count, (draws, count))
    low, high = np.quantile(statistic(picks), [0.025, 0.975])
    return float(low), float(high)


def ratio_of_medians(ours: np.ndarray, rival: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median ÷ median of as many values each, with its bootstrap interval."""
    value = float(np.median(ours) / np.median(rival))
    return value, bootstrap_interval(
        lambda picks: np.median(ours[picks], axis=1) / np.median(rival[picks], axis=1), len(ours)
    )
