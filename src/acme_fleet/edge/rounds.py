"""One round of Algorithm 2 at the edge: what the devices sent, mixed for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from acme_fleet.config.personalization import Mix
from acme_fleet.edge.aggregation import ImportanceSet, aggregate, mix_headers
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.outside import reason

Kept = Mapping[str, Sequence[int]]
"""Channels that pruning has left, by layer; a layer that is not listed has all."""


class Upload(Protocol):
    """A device's upload in a round."""

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

    @property
    def held(self) -> Sequence[int]:
        """Classes that the device trains on, where it was asked for them."""
        ...


@dataclass(frozen=True)
class Mixture:
    """The mixed sets and headers that devices get back in a round.

    Attributes:
        importance: the mixed set by device.
        headers: the mixed header by device; empty where none is mixed.
        shortened: by how much the updates of devices were scaled down, of those that were.
    """

    importance: dict[str, dict[str, Tensor]]
    headers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shortened: dict[str, float] = field(default_factory=dict)


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
        raise ProtocolError(f"the channels that {name} kept: {reason(error)}") from error


def check_held(name: str, held: Sequence[int], plan: HeaderPlan, asked: bool) -> None:
    """Refuse classes that do not exist, or that nobody asked for.

    Raises:
        ProtocolError: naming them.
    """
    fits = list(held) == sorted(set(held)) and all(number < plan.classes for number in held)
    if not fits or bool(held) != asked:
        wanted = f"ascending numbers below {plan.classes}" if asked else "none"
        raise ProtocolError(f"the classes that {name} holds: {list(held)[:5]}, expected {wanted}")


def mix_round(
    uploads: Mapping[str, Upload],
    plan: HeaderPlan,
    coarse: Mapping[str, Tensor],
    weights: Float[np.ndarray, "devices devices"],
    mix: Mix,
    by_class: bool = False,
) -> Mixture:
    """Importance set and header that each device gets back.

    Args:
        uploads: by device, checked.
        plan, coarse: the header that all received.
        weights: Ŵ, rows and columns in the order of ``uploads``.
        mix: what is mixed by Ŵ; an importance set that is not comes back as the device's own.
        by_class: a device's own classes' rows of the classifier come from those who hold them.
    """
    sets = {name: upload.importance for name, upload in uploads.items()}
    importance = aggregate(sets, np.eye(len(sets)) if mix == "weights" else weights)
    if mix == "importance":
        return Mixture(importance)
    mixed = mix_headers(
        {name: upload.header for name, upload in uploads.items()},
        {name: _left(plan, upload.kept) for name, upload in uploads.items()},
        weights,
        coarse,
        held={name: upload.held for name, upload in uploads.items()} if by_class else None,
    )
    shortened = {name: scale for name, scale in mixed.scales.items() if scale < 1}
    return Mixture(importance, mixed.headers, shortened)


def _left(plan: HeaderPlan, kept: Kept) -> HeaderPlan:
    return HeaderPlan.model_validate({**plan.model_dump(), "kept": kept})
