"""Personalised aggregation of importance sets (Eq. 21), and of header weights (a deviation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.header.unpruned import expand, places, presence

ImportanceSet = Mapping[str, Float[Tensor, " _"]]
"""Importance by layer, one number for each of its channels; layers differ in their number."""


def normalize(importance: ImportanceSet) -> dict[str, Float[Tensor, " _"]]:
    """Scale a set to sum 1, so that no device's loss scale outvotes the others.

    In double precision: sums may exceed what the values' own precision can hold.
    """
    total = sum(float(values.double().sum()) for values in importance.values())
    return {
        layer: (values.double() / total).to(values.dtype) for layer, values in importance.items()
    }


def aggregate(
    sets: Mapping[str, ImportanceSet], weights: Float[np.ndarray, "devices devices"]
) -> dict[str, dict[str, Float[Tensor, " _"]]]:
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


@dataclass(frozen=True)
class MixedHeaders:
    """Mixed headers of each device, and the scale of its own part.

    Attributes:
        headers: tensors by device, in the shapes of its own plan.
        scales: by what each device's update was scaled, see :func:`update_scales`.
    """

    headers: dict[str, dict[str, Tensor]]
    scales: dict[str, float]


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
    return {name: 1.0 if length <= limit else limit / length for name, length in lengths.items()}


def contain(
    headers: Mapping[str, Mapping[str, Tensor]],
    start: Mapping[str, Tensor],
    scales: Mapping[str, float],
) -> dict[str, dict[str, Tensor]]:
    """Shorten updates that are much longer than the others', so that no device outvotes the rest.

    Args:
        headers, start: as for :func:`update_scales`.
        scales: what that gave.
    """
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
    held: Mapping[str, Sequence[int]] | None = None,
) -> MixedHeaders:
    """v'_n = Σ_i ŵ_{n,i} v_i, entry by entry over the peers that still have the entry.

    A named deviation: the paper mixes importance alone (METHOD 8). Where pruning left different
    neurons, the weights of those who have one are renormalised. So they are with ``held`` for the
    classifier's rows of a device's own classes, over those who train on the class: to the others
    it is only ever the wrong answer.

    Args:
        headers: tensors by device, in the shapes of its own plan.
        plans: by device, of one genotype.
        weights: Ŵ, rows and columns in the order of ``headers``.
        start: the coarse header that all received.
        most: see :func:`update_scales`.
        held: the classes that each device trains on; none is to mix every row over all.
    """
    names = list(headers)
    present = {name: presence(plans[name]) for name in names}
    whole = completed(headers, plans, start)
    scales = update_scales(whole, start, most)
    whole = contain(whole, start, scales)
    rows = _rows(names, held, len(start["classifier.pooled.bias"])) if held else None
    mixed: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    matrix = torch.from_numpy(weights).double()
    for key in start:
        values = torch.stack([whole[name][key] for name in names]).flatten(1).double()
        there = torch.stack([present[name][key] for name in names]).flatten(1).double()
        combined = _mean(matrix, values, there)
        if rows is not None and key.startswith("classifier."):
            own = rows.repeat_interleave(values.shape[1] // rows.shape[1], dim=1)
            combined = torch.where(own > 0, _mean(matrix, values, there * own), combined)
        for row, name in zip(combined, names, strict=True):
            mixed[name][key] = row.view(start[key].shape).to(start[key].dtype)
    own = {name: _own(plans[name], tensors) for name, tensors in mixed.items()}
    return MixedHeaders(own, scales)


def _mean(
    matrix: Float[Tensor, "devices devices"],
    values: Float[Tensor, "devices entries"],
    there: Float[Tensor, "devices entries"],
) -> Float[Tensor, "devices entries"]:
    """Each device's weighted mean over those who have an entry; its own where nobody has."""
    share = matrix @ there
    return torch.where(share > 0, (matrix @ (values * there)) / share, values)


def _rows(
    names: Sequence[str], held: Mapping[str, Sequence[int]], classes: int
) -> Float[Tensor, "devices classes"]:
    """1 for the classes that a device trains on."""
    rows = torch.zeros(len(names), classes, dtype=torch.float64)
    for row, name in zip(rows, names, strict=True):
        row[list(held[name])] = 1.0
    return rows


def _own(plan: HeaderPlan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Out of tensors in the unpruned shapes those entries that a plan still has."""
    return {name: tensors[name][place or ...].clone() for name, place in places(plan)}
