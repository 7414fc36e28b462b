"""Choose after recovery: a few candidates are recovered for a while, then one is chosen.

The ranking of sub-networks that share weights is not their ranking once each is trained alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from acme_fleet.config.backbone import Rule
from acme_fleet.cost.variant import Variant
from acme_fleet.selection.choice import Match, choose, distances
from acme_fleet.selection.front import exact_front, worst


def finalists(
    objectives: Float[np.ndarray, "candidates objectives"],
    variants: Sequence[Variant],
    found: Match,
    count: int,
    rule: Rule = "nearest",
) -> list[Variant]:
    """The ``count`` best shapes that fit, spread over the front; the choice without recovery first.

    The front is walked by intervals of the loss, the best first: the nearest candidate to the ideal
    point of each interval, then the second nearest of each, and so on. A shape counts once: its
    precisions are rounded from the same weights.

    Args:
        objectives: all candidates.
        variants: their identities.
        found: the choice from them without recovery.
        count: K.
        rule: the distance.

    Returns:
        Shapes, in float32; fewer than K where fewer fit.
    """
    subset = objectives[found.feasible]
    far = np.round(distances(subset, found.coordinates, rule, worst(objectives)), 12)
    front = np.flatnonzero(exact_front(subset))
    ties = subset[front, -1], subset[front, 0], far[front], found.coordinates[front, 0]
    nearest = front[np.lexsort(ties)]  # of each interval in turn
    ranks: dict[Variant, tuple[int, int]] = {}
    taken: Counter[int] = Counter()
    for row in nearest.tolist():
        shape, interval = variants[int(found.feasible[row])].trained, int(found.coordinates[row, 0])
        if shape not in ranks:
            ranks[shape] = taken[interval], interval
            taken[interval] += 1
    return sorted(ranks, key=lambda shape: ranks[shape])[:count]


def choose_recovered(
    objectives: Float[np.ndarray, "candidates objectives"],
    found: Match,
    losses: Float[np.ndarray, " candidates"],
    performance_window: float,
    rule: Rule = "nearest",
) -> Match:
    """The choice among recovered candidates that fit; the rest of ``found`` stays as it was.

    Args:
        objectives: all candidates before recovery.
        found: the choice from them.
        losses: after recovery; NaN of those that were not recovered.
        performance_window: γ_p.
        rule: the distance.
    """
    rows: Int[np.ndarray, " finalists"] = found.feasible[np.isfinite(losses[found.feasible])]
    if not rows.size:
        return found
    recovered = objectives[rows].copy()
    recovered[:, 0] = losses[rows]
    chosen = choose(recovered, performance_window, rule, worst(objectives))
    return replace(found, chosen=int(rows[chosen]))
