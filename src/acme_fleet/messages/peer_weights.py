"""Ŵ of Eq. 20: a row for each receiver, a column for each device that it listens to.

A matrix for few devices. For many it is sparse, or one weight for all, so that memory and time grow
with the devices and not with their pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array, diags_array
from torch import Tensor

MOST_DENSE = 256
"""Devices up to which Ŵ is a matrix, of exact distances between all pairs."""


@dataclass(frozen=True, eq=False)
class Alike:
    """Equal weights for all devices, each times its freshness; a device is fresh to itself.

    Attributes:
        freshness: of each device, from 0 to 1.
    """

    freshness: Float[np.ndarray, " devices"]

    def sums(self, values: Float[Tensor, "devices entries"]) -> Float[Tensor, "devices entries"]:
        """Weighted sums for all receivers, see :func:`weighted_sums`."""
        fresh = torch.from_numpy(self.freshness).double()
        own = (1 - fresh)[:, None]
        sums = fresh @ values.double() + own * values.double()
        return (sums / (fresh.sum() + own)).to(values.dtype)


PeerWeights: TypeAlias = Float[np.ndarray, "devices devices"] | csr_array | Alike
"""Ŵ; every row sums to 1."""


def weighted_sums(
    weights: PeerWeights, values: Float[Tensor, "devices entries"]
) -> Float[Tensor, "devices entries"]:
    """Σ_i ŵ_ni · values_i for each receiver n, in the values' own type."""
    if isinstance(weights, Alike):
        return weights.sums(values)
    if isinstance(weights, np.ndarray):
        return torch.from_numpy(weights).to(values.dtype) @ values
    return torch.from_numpy(weights @ values.numpy()).to(values.dtype)


def column(weights: PeerWeights, number: int) -> list[float]:
    """The weights of one device for each receiver."""
    if isinstance(weights, Alike):
        one = torch.zeros(len(weights.freshness), 1, dtype=torch.float64)
        one[number] = 1
        return weights.sums(one)[:, 0].tolist()
    own = weights[:, [number]]
    return (own if isinstance(own, np.ndarray) else own.toarray())[:, 0].tolist()


def among(
    weights: PeerWeights, index: Sequence[int], freshness: Sequence[float] | None = None
) -> Float[np.ndarray, "present present"] | csr_array | Alike:
    """The weights among those who count in a round, rows summing to 1 again.

    Args:
        weights: Ŵ of all devices.
        index: the rows of those who count.
        freshness: how much each of them counts for the others, in their order; 1 by default. A
            device's weight for itself stays.
    """
    fresh = np.ones(len(index)) if freshness is None else np.asarray(freshness, dtype=float)
    if isinstance(weights, Alike):
        return Alike(weights.freshness[index] * fresh)
    if not isinstance(weights, np.ndarray):
        chosen = weights[index][:, index]
        own = diags_array(chosen.diagonal() * (1 - fresh))
        chosen = chosen @ diags_array(fresh) + own
        return csr_array(diags_array(1 / chosen.sum(axis=1)) @ chosen)
    chosen = weights[np.ix_(index, index)]
    if freshness is not None:
        own = np.diag(chosen).copy()
        chosen = chosen * fresh
        np.fill_diagonal(chosen, own)
    return chosen / chosen.sum(axis=1, keepdims=True)


def to_lists(weights: PeerWeights) -> tuple[list[list[float]], list[list[int]]]:
    """Ŵ as documents and messages hold it.

    Returns:
        Each receiver's weights; and the columns that they are of, where those are not all. Neither
        has rows if all weights are equal.
    """
    if isinstance(weights, Alike):
        return [], []
    if isinstance(weights, np.ndarray):
        return weights.tolist(), []
    ends = weights.indptr[1:-1]
    rows = np.split(weights.data, ends), np.split(weights.indices, ends)
    return [row.tolist() for row in rows[0]], [row.tolist() for row in rows[1]]


def from_lists(
    devices: int, rows: Sequence[Sequence[float]], columns: Sequence[Sequence[int]]
) -> PeerWeights:
    """The weights that :func:`to_lists` has made lists of."""
    if columns:
        ends = np.cumsum([0, *map(len, rows)])
        return csr_array(
            (np.concatenate(rows), np.concatenate(columns), ends), shape=(devices, devices)
        )
    return np.array(rows) if rows else Alike(np.ones(devices))
