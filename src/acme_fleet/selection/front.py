"""Grid coordinates and the Pareto front of candidates (Eq. 11-12)."""

from __future__ import annotations

import math

import moocore
import numpy as np
from jaxtyping import Bool, Float, Int, Real

_ROUNDING = 1e-12  # relative: what two ways of computing one number may differ by
_MOST_INTERVALS = 2**52


def interval_count(losses: Float[np.ndarray, " candidates"], performance_window: float) -> int:
    """K = ceil((worst loss - ideal loss) / γ_p), at least 1.

    An interval is thus never wider than the window.

    Args:
        losses: of all candidates.
        performance_window: γ_p, the loss that may be given up, in the unit of the losses.

    Raises:
        ValueError: if the window is not a positive number.
    """
    if not 0 < performance_window < math.inf:
        raise ValueError(f"the performance window must be positive, not {performance_window}")
    ratio = min(float(np.ptp(losses)) / performance_window, _MOST_INTERVALS)
    return max(1, math.ceil(ratio * (1 - _ROUNDING)))


def interval_end(losses: Float[np.ndarray, " candidates"], performance_window: float) -> float:
    """The largest loss of the best performer's interval, Ψ^1 = 1: ideal + (worst - ideal) / K.

    Arguments and errors as for ``interval_count``.
    """
    return float(losses.min() + np.ptp(losses) / interval_count(losses, performance_window))


def grid_coordinates(
    objectives: Float[np.ndarray, "candidates objectives"],
    performance_window: float,
    sigma: float = 1e-9,
) -> Int[np.ndarray, "candidates objectives"]:
    """Ψ^l = ceil((f^l - ideal^l + σ) / r^l), r^l = (worst^l - ideal^l + 2σ) / K (Eq. 11).

    σ is a share of the objective's range, so that no coordinate depends on a unit, and at most a
    quarter of an interval, so that the ideal has coordinate 1 however narrow the intervals are. An
    objective that all candidates have in common has coordinate 1.

    Returns:
        Integers from 1 (ideal) to K.

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    objectives = checked(objectives)
    intervals = interval_count(objectives[:, 0], performance_window)
    sigma = min(sigma, 0.25 / intervals)
    spread = np.ptp(objectives, axis=0)
    share = (objectives - objectives.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    exact = (share + sigma) * intervals / (1 + 2 * sigma)
    return np.clip(np.ceil(exact * (1 - _ROUNDING)), 1, intervals).astype(np.int64)


def pareto_front_grid(
    coordinates: Int[np.ndarray, "candidates objectives"],
) -> Bool[np.ndarray, " candidates"]:
    """The Pareto Front Grid, as a mask (Eq. 12, read as METHOD 6 does).

    For each objective l and each combination of the other objectives' coordinates, the
    candidates whose Ψ^l is smallest; the union over l. All candidates of the first performance
    interval are in it: their Ψ^1 cannot be undercut.

    Args:
        coordinates: Ψ.
    """
    kept = np.zeros(len(coordinates), dtype=bool)
    for objective in range(coordinates.shape[1]):
        own = coordinates[:, objective]
        others = np.delete(coordinates, objective, axis=1)
        order = np.lexsort((own, *others.T))
        starts = np.ones(len(order), dtype=bool)
        starts[1:] = (others[order[1:]] != others[order[:-1]]).any(axis=1)
        smallest = own[order][starts][np.cumsum(starts) - 1]
        kept[order[own[order] == smallest]] = True
    return kept


def exact_front(
    objectives: Float[np.ndarray, "candidates objectives"],
) -> Bool[np.ndarray, " candidates"]:
    """Candidates that no other dominates, as a mask.

    Candidates that are equal in every objective do not dominate each other: all are kept.

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    return np.asarray(moocore.is_nondominated(checked(objectives), keep_weakly=True))


def front(
    objectives: Float[np.ndarray, "candidates objectives"], performance_window: float
) -> Bool[np.ndarray, " candidates"]:
    """The grid without candidates that any candidate dominates, as a mask (Eq. 12).

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    grid = pareto_front_grid(grid_coordinates(objectives, performance_window))
    return grid & exact_front(objectives)


def worst(
    objectives: Float[np.ndarray, "candidates objectives"],
) -> Float[np.ndarray, " objectives"]:
    """The largest magnitude of each objective."""
    return np.abs(objectives).max(axis=0)


def checked(
    objectives: Real[np.ndarray, "candidates objectives"],
) -> Float[np.ndarray, "candidates objectives"]:
    """Objectives as double-precision numbers.

    Raises:
        ValueError: for an empty table, or naming the first candidate with an objective that is not
            finite.
    """
    objectives = np.asarray(objectives, dtype=np.float64)
    if objectives.ndim != 2 or not objectives.size:
        raise ValueError(f"objectives have shape {objectives.shape}, not (candidates, objectives)")
    finite = np.isfinite(objectives)
    if not finite.all():
        candidate, column = np.argwhere(~finite)[0]
        value = objectives[candidate, column]
        raise ValueError(f"candidate {candidate}: objective {column} is {value}")
    return objectives
