"""Distances to the ideal point, as sums of normalised shares; smaller is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from acme_fleet.selection.front import checked, exact_front

_DIGITS = 12  # of a distance: what two ways of computing one number may differ by


def shares_to_ideal(
    objectives: Float[np.ndarray, "candidates objectives"],
    ideal: Float[np.ndarray, " objectives"],
    scale: Float[np.ndarray, " objectives"],
) -> Float[np.ndarray, "candidates objectives"]:
    """(f^l - ideal^l) / scale^l for each objective.

    Args:
        objectives: all are minimised.
        ideal: the best value of each.
        scale: the distance that counts as 1 in each objective; 0 counts as 1.
    """
    return (objectives - ideal) / np.where(scale > 0, scale, 1.0)


def deployment_scores(
    objectives: Real[np.ndarray, "candidates objectives"],
    weights: Sequence[float],
    among: Real[np.ndarray, "others objectives"] | None = None,
) -> Float[np.ndarray, " candidates"]:
    """1 - Σ_l w_l (f^l - best^l) / (worst^l - best^l): 1 is best everywhere, 0 worst everywhere.

    Args:
        objectives: all are minimised.
        weights: w, not negative; they are divided by their sum.
        among: the table whose best and worst values count; the objectives themselves by default.

    Raises:
        ValueError: for an objective that is not finite, or weights that are negative or all zero.
    """
    objectives = checked(objectives)
    among = objectives if among is None else checked(among)
    total = np.asarray(weights, dtype=np.float64)
    if (total < 0).any() or not total.sum() > 0 or len(total) != objectives.shape[1]:
        raise ValueError(f"weights {list(weights)} must be {objectives.shape[1]}, ≥ 0, not all 0")
    shares = shares_to_ideal(objectives, among.min(axis=0), np.ptp(among, axis=0))
    return 1.0 - shares @ (total / total.sum())


def weighted_pick(
    objectives: Real[np.ndarray, "candidates objectives"], weights: Sequence[float]
) -> int:
    """The candidate of the exact front with the largest deployment score.

    Ties go to the smaller first objective, then to the smaller second one, and so on, then to the
    first in the table. Errors as for ``deployment_scores``.
    """
    objectives = checked(objectives)
    scores = deployment_scores(objectives, weights)
    front = np.flatnonzero(exact_front(objectives))
    return _first(-scores, objectives, front)


def single_objective_pick(objectives: Real[np.ndarray, "candidates objectives"], first: int) -> int:
    """The rival that looks at one objective: its smallest value; ties as in ``weighted_pick``."""
    objectives = checked(objectives)
    return _first(objectives[:, first], objectives, np.arange(len(objectives)))


def random_pick(candidates: int, generator: np.random.Generator) -> int:
    """The rival that draws: each candidate with the same probability."""
    return int(generator.integers(candidates))


def oracle(
    measured: Real[np.ndarray, "candidates objectives"], weights: Sequence[float]
) -> tuple[int, Float[np.ndarray, " candidates"]]:
    """Exhaustive search over measured objectives: the best candidate, and the score of each.

    The score of a choice divided by the oracle's tells what the choice lost.
    """
    scores = deployment_scores(measured, weights)
    return int(np.argmax(np.round(scores, _DIGITS))), scores


def _first(
    keys: Float[np.ndarray, " candidates"],
    objectives: Float[np.ndarray, "candidates objectives"],
    rows: Int[np.ndarray, " rows"],
) -> int:
    """The row with the smallest key; ties by the objectives in turn, then by the position."""
    columns = objectives[rows].T[::-1]
    return int(rows[np.lexsort((*columns, np.round(keys[rows], _DIGITS)))[0]])
