"""The rivals of the choice by Eq. 13, and the figures by which choices are compared (IV-B3)."""

import numpy as np
from jaxtyping import Float, Int, Real

from acme_fleet.selection.choice import fitting
from acme_fleet.selection.front import grid_coordinates

Column = Real[np.ndarray, " candidates"]

# --- rivals -----------------------------------------------------------------------------------
# Each picks a candidate from its columns: losses, sizes in bytes, scores of ``trade_off_scores``.
# ``limit`` is in bytes, equal fits; ``cluster`` is a name for the FleetError that names the limit
# and the smallest candidate, if none fits.


def greedy_accuracy(losses: Column, sizes: Column, limit: float, cluster: str) -> int:
    """Greedy-Accuracy: the smallest loss that fits; ties go to the smaller size."""
    return _first(fitting(sizes, limit, cluster), losses, sizes)


def greedy_size(losses: Column, sizes: Column, limit: float, cluster: str) -> int:
    """Greedy-Size: the largest candidate that fits; ties go to the smaller loss."""
    return _first(fitting(sizes, limit, cluster), -sizes, losses)


def random_choice(sizes: Column, limit: float, cluster: str, generator: np.random.Generator) -> int:
    """Random: any candidate that fits, all equally likely."""
    return int(generator.choice(fitting(sizes, limit, cluster)))


def oracle(scores: Column, sizes: Column, limit: float, cluster: str) -> int:
    """The best score among all that fit, by looking at each; ties go to the smaller size."""
    return _first(fitting(sizes, limit, cluster), -scores, sizes)


def window_oracle(
    scores: Column,
    losses: Column,
    sizes: Column,
    limit: float,
    performance_window: float,
    cluster: str,
) -> int:
    """The best score among all that fit and lie in the best performer's interval Ψ^1.

    What Eq. 13 can reach at most with the same performance window.
    """
    feasible = fitting(sizes, limit, cluster)
    interval = grid_coordinates(losses[feasible, None], performance_window)[:, 0]
    return _first(feasible[interval == 1], -scores, sizes)


def _first(among: Int[np.ndarray, " feasible"], key: Column, tie: Column) -> int:
    """The candidate with the smallest key; ties by the other column, then by position."""
    return int(among[np.lexsort((tie[among], key[among]))[0]])


# --- figures ----------------------------------------------------------------------------------


def trade_off_scores(
    accuracies: Column, energies: Column, sizes: Column
) -> Float[np.ndarray, " candidates"]:
    """Trade-off Score: accuracy - 0.5·(size + energy); higher is better.

    Size and energy are shares of the largest candidate's in the table, which is the reference
    model's where w = 1 at full depth is a candidate: the normalisation of the authors' figures
    (accuracy .896, size .667, energy .569: score .278). The paper's text prints loss + energy +
    size, lower is better, and no normalisation.
    """
    return accuracies - 0.5 * (sizes / np.max(sizes) + energies / np.max(energies))


def efficiency_ratio(accuracies: Column, costs: Column) -> Float[np.ndarray, " candidates"]:
    """Energy Efficiency Ratio (costs are energies) and Size Efficiency Ratio (costs are sizes).

    Accuracy / cost, in accuracy per unit of the cost.
    """
    return accuracies / costs
