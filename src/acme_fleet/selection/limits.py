"""Hard limits: the candidates that keep them, and the smallest relaxation that admits one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Real


@dataclass(frozen=True)
class Limit:
    """One limit of a user.

    Attributes:
        name: the setting.
        unit: of its number.
        bound: equal keeps it.
        at_least: true where the value must not be smaller; otherwise it must not be larger.
    """

    name: str
    unit: str
    bound: float
    at_least: bool = False

    def excess(self, values: Real[np.ndarray, "*candidates"]) -> Float[np.ndarray, "*candidates"]:
        """Distance beyond the limit, as a share of its bound; 0 for values that keep it."""
        beyond = self.bound - values if self.at_least else values - self.bound
        return np.maximum(beyond, 0.0) / (abs(self.bound) or 1.0)


def kept(
    values: Real[np.ndarray, "limits candidates"], limits: Sequence[Limit]
) -> Bool[np.ndarray, "limits candidates"]:
    """True where a candidate keeps a limit. A value that is not known (NaN) keeps it."""
    rows = [~(limit.excess(row) > 0) for limit, row in zip(limits, values, strict=True)]
    return np.array(rows, dtype=bool).reshape(values.shape)


@dataclass(frozen=True)
class Relaxation:
    """Bounds that admit a candidate, by the limit's name; only the limits that must move.

    Attributes:
        candidate: the first one that they admit.
        bounds: new bounds.
        excess: sum of the moves, each as a share of the old bound.
    """

    candidate: int
    bounds: dict[str, float]
    excess: float


def smallest_relaxation(
    values: Real[np.ndarray, "limits candidates"], limits: Sequence[Limit]
) -> Relaxation:
    """The bounds with the smallest sum of relative moves that admit a candidate.

    Ties go to fewer moved limits, then to the first candidate. A value that is not known (NaN)
    moves nothing.

    Raises:
        ValueError: if there is no candidate.
    """
    if not values.shape[1]:
        raise ValueError("there is no candidate that other limits would admit")
    rows = [limit.excess(row) for limit, row in zip(limits, values, strict=True)]
    excess = np.nan_to_num(np.array(rows, dtype=np.float64).reshape(values.shape))
    total, moved = excess.sum(axis=0), (excess > 0).sum(axis=0)
    candidate = int(np.lexsort((moved, np.round(total, 12)))[0])
    bounds = {
        limit.name: float(row[candidate])
        for limit, row, far in zip(limits, values, excess, strict=True)
        if far[candidate] > 0
    }
    return Relaxation(candidate, bounds, float(total[candidate]))


def single_relaxations(
    values: Real[np.ndarray, "limits candidates"], limits: Sequence[Limit]
) -> dict[str, float]:
    """For each limit the bound that admits a candidate while all others stay as they are.

    A limit that admits nothing alone is not in the answer.
    """
    keeps = kept(values, limits)
    found = {}
    for number, limit in enumerate(limits):
        others = np.delete(keeps, number, axis=0).all(axis=0)
        known = values[number][others & ~np.isnan(values[number])]
        if known.size and not keeps[number][others].any():
            found[limit.name] = float(known.max() if limit.at_least else known.min())
    return found
