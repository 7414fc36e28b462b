"""One round of Algorithm 2 at the edge: what the devices sent, mixed for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from acme_fleet.edge.aggregation import (
    ImportanceSet,
    aggregate,
    completed,
    mix_headers,
    update_scales,
)
from acme_fleet.errors import ProtocolError
from acme_fleet.fleet import Mix
from acme_fleet.models.header_plan import HeaderPlan

Kept = Mapping[str, Sequence[int]]
"""Channels that pruning has left, by layer; a layer that is not listed has all."""


class Upload(Protocol):
    """What a device sends in a round."""

    @property
    def importance(self) -> ImportanceSet:
        """Q_n by layer."""
        ...

    @property
    def header(self) -> Mapping[str, Tensor]:
        """The header's tensors, where weights are mixed."""
        ...

    @property
    def kept(self) -> Kept:
        """Channels that pruning has left."""
        ...


def header_shapes(name: str, kept: Kept, plan: HeaderPlan, mix: Mix) -> dict[str, tuple[int, ...]]:
    """Shapes of the header that a device must send: none where weights are not mixed.

    Raises:
        ProtocolError: if the device kept what does not exist.
    """
    if mix == "importance":
        return {}
    try:
        return _left(plan, kept).shapes()
    except ValueError as error:
        raise ProtocolError(f"the channels that {name} kept: {error}") from error


def mix_round(
    uploads: Mapping[str, Upload],
    plan: HeaderPlan,
    coarse: Mapping[str, Tensor],
    weights: Float[np.ndarray, "devices devices"],
    mix: Mix,
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Importance set and header that each device gets back; no header where none is mixed.

    Args:
        uploads: by device, checked.
        plan, coarse: the header that all received.
        weights: Ŵ, rows and columns in the order of ``uploads``.
        mix: what is mixed by Ŵ; an importance set that is not comes back as the device's own.
    """
    sets = {name: upload.importance for name, upload in uploads.items()}
    importance = aggregate(sets, np.eye(len(sets)) if mix == "weights" else weights)
    if mix == "importance":
        return {name: (own, {}) for name, own in importance.items()}
    mixed = mix_headers(
        {name: upload.header for name, upload in uploads.items()},
        {name: _left(plan, upload.kept) for name, upload in uploads.items()},
        weights,
        coarse,
    )
    return {name: (own, mixed[name]) for name, own in importance.items()}


def shortened(
    uploads: Mapping[str, Upload], plan: HeaderPlan, coarse: Mapping[str, Tensor], mix: Mix
) -> dict[str, float]:
    """By how much the updates of devices were shortened, of those that were."""
    if mix == "importance":
        return {}
    headers = {name: upload.header for name, upload in uploads.items()}
    plans = {name: _left(plan, upload.kept) for name, upload in uploads.items()}
    scales = update_scales(completed(headers, plans, coarse), coarse)
    return {name: scale for name, scale in scales.items() if scale < 1}


def _left(plan: HeaderPlan, kept: Kept) -> HeaderPlan:
    return HeaderPlan.model_validate({**plan.model_dump(), "kept": kept})
