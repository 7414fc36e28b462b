"""Personalised aggregation of importance sets (Eq. 21), and of header weights (a deviation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.models.header_plan import HeaderPlan
from acme_fleet.models.unpruned import expand, places, presence

ImportanceSet = Mapping[str, Float[Tensor, " channels"]]
"""Importance by layer, one number for each of its channels."""


def normalize(importance: ImportanceSet) -> dict[str, Tensor]:
    """Scale a set to sum 1, so that no device's loss scale outvotes the others."""
    total = sum(float(values.double().sum()) for values in importance.values())
    return {layer: values / total for layer, values in importance.items()}


def aggregate(
    sets: Mapping[str, ImportanceSet], weights: Float[np.ndarray, "devices devices"]
) -> dict[str, dict[str, Tensor]]:
    """Q'_n = Σ_i ŵ_{n,i} Q_i for every device (Eq. 21).

    Args:
        sets: an importance set for each device, all with the same layers and shapes.
        weights: Ŵ, rows and columns in the order of ``sets``.
    """
    names = list(sets)
    normalized = [normalize(sets[name]) for name in names]
    mixed: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for layer in normalized[0]:
        stacked = torch.stack([own[layer] for own in normalized])
        combined = torch.from_numpy(weights).to(stacked.dtype) @ stacked
        for row, name in enumerate(names):
            mixed[name][layer] = combined[row]
    return mixed


def present(
    weights: Float[np.ndarray, "devices devices"],
    index: list[int],
    freshness: Sequence[float] | None = None,
) -> Float[np.ndarray, "present present"]:
    """The weights among those who count in a round, rows summing to 1 again.

    Args:
        weights: Ŵ of all devices.
        index: the rows of those who count.
        freshness: how much each of them counts for the others, in their order; 1 by default. A
            device's weight for itself stays.
    """
    chosen = weights[np.ix_(index, index)]
    if freshness is not None:
        own = np.diag(chosen).copy()
        chosen = chosen * np.asarray(freshness)
        np.fill_diagonal(chosen, own)
    return chosen / chosen.sum(axis=1, keepdims=True)


def update_scales(
    headers: Mapping[str, Mapping[str, Tensor]], start: Mapping[str, Tensor], most: float = 2.0
) -> dict[str, float]:
    """By what each device's update, header less start, is scaled: below 1 if it is too long.

    Args:
        headers: each device's tensors in the unpruned shapes; absent entries equal ``start``.
        start: what all devices received, in the same shapes.
        most: an update is scaled to at most this many (lower) median lengths.
    """
    lengths = {
        name: float(sum((own[k].double() - start[k]).square().sum() for k in start)) ** 0.5
        for name, own in headers.items()
    }
    # The lower median: of two devices the shorter update sets the limit.
    limit = most * sorted(lengths.values())[(len(lengths) - 1) // 2]
    return {name: min(1.0, limit / max(length, 1e-30)) for name, length in lengths.items()}


def contain(
    headers: Mapping[str, Mapping[str, Tensor]], start: Mapping[str, Tensor], most: float = 2.0
) -> dict[str, dict[str, Tensor]]:
    """Shorten updates that are much longer than the others', so that no device outvotes the rest.

    Arguments as for :func:`update_scales`.
    """
    scales = update_scales(headers, start, most)
    return {
        name: {k: start[k] + (own[k] - start[k]) * scales[name] for k in start}
        for name, own in headers.items()
    }


def completed(
    headers: Mapping[str, Mapping[str, Tensor]],
    plans: Mapping[str, HeaderPlan],
    start: Mapping[str, Tensor],
) -> dict[str, dict[str, Tensor]]:
    """Headers in the unpruned shapes; what pruning took is as in ``start``."""
    whole = {}
    for name, header in headers.items():
        own, there = expand(plans[name], header), presence(plans[name])
        whole[name] = {k: torch.where(there[k], own[k], start[k]) for k in start}
    return whole


def mix_headers(
    headers: Mapping[str, Mapping[str, Tensor]],
    plans: Mapping[str, HeaderPlan],
    weights: Float[np.ndarray, "devices devices"],
    start: Mapping[str, Tensor],
    most: float = 2.0,
) -> dict[str, dict[str, Tensor]]:
    """v'_n = Σ_i ŵ_{n,i} v_i, entry by entry over the peers that still have the entry.

    A named deviation: the paper mixes importance alone (METHOD 8). Where pruning left different
    neurons, the weights of those who have one are renormalised.

    Args:
        headers: tensors by device, in the shapes of its own plan.
        plans: by device, of one genotype.
        weights: Ŵ, rows and columns in the order of ``headers``.
        start: the coarse header that all received.
        most: see :func:`contain`.

    Returns:
        For each device tensors in the shapes of its own plan.
    """
    names = list(headers)
    present = {name: presence(plans[name]) for name in names}
    whole = contain(completed(headers, plans, start), start, most)
    mixed: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    matrix = torch.from_numpy(weights).double()
    for key in start:
        values = torch.stack([whole[name][key] for name in names]).flatten(1).double()
        there = torch.stack([present[name][key] for name in names]).flatten(1).double()
        share = matrix @ there
        combined = (matrix @ (values * there)) / share
        combined = torch.where(share > 0, combined, values)
        for row, name in zip(combined, names, strict=True):
            mixed[name][key] = row.view(start[key].shape).to(start[key].dtype)
    return {name: _own(plans[name], tensors) for name, tensors in mixed.items()}


def _own(plan: HeaderPlan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Out of tensors in the unpruned shapes those entries that a plan still has."""
    return {name: tensors[name][place or ...].clone() for name, place in places(plan)}
