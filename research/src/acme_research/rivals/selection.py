"""The rivals of the choice by Eq. 13, and the figures by which choices are compared (IV-B3)."""

from __future__ import annotations

import moocore
import numpy as np
from jaxtyping import Float, Real

from acme_fleet.selection.choice import fitting
from acme_fleet.selection.front import grid_coordinates

# --- rivals -----------------------------------------------------------------------------------


def greedy_accuracy(
    losses: Float[np.ndarray, " candidates"],
    sizes: Real[np.ndarray, " candidates"],
    limit: float,
    cluster: str,
) -> int:
    """Greedy-Accuracy: the smallest loss that fits; ties go to the smaller size.

    Args:
        losses, sizes: of all candidates, sizes in bytes.
        limit: bytes; equal fits. cluster: its name, for errors.

    Raises:
        FleetError: naming the cluster, its limit and the smallest candidate, if none fits.
    """
    feasible = fitting(sizes, limit, cluster)
    return int(feasible[np.lexsort((sizes[feasible], losses[feasible]))[0]])


def greedy_size(
    losses: Float[np.ndarray, " candidates"],
    sizes: Real[np.ndarray, " candidates"],
    limit: float,
    cluster: str,
) -> int:
    """Greedy-Size: the largest candidate that fits; ties go to the smaller loss.

    Arguments and errors as for ``greedy_accuracy``.
    """
    feasible = fitting(sizes, limit, cluster)
    return int(feasible[np.lexsort((losses[feasible], -sizes[feasible]))[0]])


def random_choice(
    sizes: Real[np.ndarray, " candidates"],
    limit: float,
    cluster: str,
    generator: np.random.Generator,
) -> int:
    """Random: any candidate that fits, all equally likely.

    Other arguments and errors as for ``greedy_accuracy``.
    """
    return int(generator.choice(fitting(sizes, limit, cluster)))


def oracle(
    scores: Float[np.ndarray, " candidates"],
    sizes: Real[np.ndarray, " candidates"],
    limit: float,
    cluster: str,
) -> int:
    """The best score among all that fit, by looking at each; ties go to the smaller size.

    Args:
        scores: of ``trade_off_scores``.
        sizes, limit, cluster: as for ``greedy_accuracy``.

    Raises:
        FleetError: naming the cluster, its limit and the smallest candidate, if none fits.
    """
    feasible = fitting(sizes, limit, cluster)
    return int(feasible[np.lexsort((sizes[feasible], -scores[feasible]))[0]])


def window_oracle(
    scores: Float[np.ndarray, " candidates"],
    losses: Float[np.ndarray, " candidates"],
    sizes: Real[np.ndarray, " candidates"],
    limit: float,
    performance_window: float,
    cluster: str,
) -> int:
    """The best score among all that fit and lie in the best performer's interval Ψ^1.

    What Eq. 13 can reach at most with the same performance window. Arguments and errors as for
    ``oracle``.
    """
    feasible = fitting(sizes, limit, cluster)
    interval = grid_coordinates(losses[feasible, None], performance_window)[:, 0]
    near = feasible[interval == 1]
    return int(near[np.lexsort((sizes[near], -scores[near]))[0]])


# --- figures ----------------------------------------------------------------------------------


def trade_off_scores(
    accuracies: Float[np.ndarray, " candidates"],
    energies: Float[np.ndarray, " candidates"],
    sizes: Real[np.ndarray, " candidates"],
) -> Float[np.ndarray, " candidates"]:
    """Trade-off Score: accuracy - 0.5·(size + energy); higher is better.

    Size and energy are shares of the largest candidate's in the table, which is the reference
    model's where w = 1 at full depth is a candidate: the normalisation of the authors' figures
    (accuracy .896, size .667, energy .569: score .278). The paper's text prints loss + energy +
    size, lower is better, and no normalisation.

    Args:
        accuracies, energies, sizes: of all candidates.
    """
    return accuracies - 0.5 * (sizes / np.max(sizes) + energies / np.max(energies))


def efficiency_ratio(
    accuracies: Float[np.ndarray, " candidates"], costs: Real[np.ndarray, " candidates"]
) -> Float[np.ndarray, " candidates"]:
    """Energy Efficiency Ratio (costs are energies) and Size Efficiency Ratio (costs are sizes).

    Accuracy / cost, in accuracy per unit of the cost.
    """
    return accuracies / costs


def regret(scores: Float[np.ndarray, " candidates"], chosen: int, best: int) -> float:
    """The difference of the best candidate's score and the chosen one's."""
    return float(scores[best] - scores[chosen])


def hypervolume(
    points: Float[np.ndarray, "points objectives"],
    objectives: Float[np.ndarray, "candidates objectives"],
) -> float:
    """Share of the box between a table's ideal and worst point that ``points`` dominate.

    Higher is better; 1 is the ideal point. Does not depend on units.

    Args:
        points: rows of the table, a front say.
        objectives: the whole table. An objective that all candidates have in common is left out.
    """
    varies = np.ptp(objectives, axis=0) > 0
    if not varies.any():
        return 1.0
    ideal, spread = objectives.min(axis=0)[varies], np.ptp(objectives, axis=0)[varies]
    return float(moocore.hypervolume((points[:, varies] - ideal) / spread, ref=1.0))
