"""Rule ``importance``, the paper's: devices share the importance of their neurons (Eq. 21)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.edge_device import ImportanceUpload, RoundStart
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.personalization.base import Mixture, Own, Rule, Upload


def aggregate(
    sets: Mapping[str, ImportanceSet], weights: Float[np.ndarray, "devices devices"]
) -> dict[str, ImportanceSet]:
    """Q'_n = Σ_i ŵ_{n,i} Q_i for every device, each Q_i scaled to sum 1 (Eq. 21).

    Args:
        sets: an importance set for each device, all of one form.
        weights: Ŵ, rows and columns in the order of ``sets``.
    """
    normalized = [own.normalized() for own in sets.values()]
    return dict(zip(sets, ImportanceSet.mixtures(normalized, weights), strict=True))


def channels_of(plan: HeaderPlan) -> dict[str, int]:
    """Channels of each layer of an importance set, in the plan's order, pruned ones included."""
    return dict.fromkeys(plan.layers, plan.genotype.channels)


def sets_of(uploads: Mapping[str, Upload], plan: HeaderPlan) -> dict[str, ImportanceSet]:
    """The importance sets in uploads, by device, with the layers in the plan's order."""
    return {name: ImportanceSet.of(up.importance, plan.layers) for name, up in uploads.items()}


class ImportanceRule(Rule):
    """Algorithm 2 as in the paper: importance sets alone are sent and mixed."""

    def upload(self, start: RoundStart, own: Own) -> ImportanceUpload:
        """The device's importance set."""
        return ImportanceUpload(round=start.round, importance=own.importance.by_layer())

    def check(
        self, name: str, upload: ImportanceUpload, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse an importance set, a header or classes that were not asked for like this."""
        if upload.masked:
            raise ProtocolError(f"{name} sent masked shares that nobody asked for")
        ImportanceSet.checked(upload.importance, channels_of(plan), f"the importance of {name}")
        shapes = self.header_shapes(name, upload.kept, plan)
        check_shapes(upload.header, shapes, f"the header of {name}", torch.float32)
        self.check_held(name, upload.held, plan)

    def header_shapes(
        self, name: str, kept: Mapping[str, Sequence[int]], plan: HeaderPlan
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the header that a device must send: here none.

        Raises:
            ProtocolError: if the device kept what nobody asked for.
        """
        if kept:
            raise ProtocolError(f"{name} told of kept channels that nobody asked for")
        return {}

    def check_held(self, name: str, held: Sequence[int], plan: HeaderPlan) -> None:
        """Refuse classes that nobody asked for.

        Raises:
            ProtocolError: naming them.
        """
        if held:
            raise ProtocolError(f"the classes that {name} holds: {list(held)[:5]}, expected none")

    def mix(
        self,
        uploads: Mapping[str, Upload],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: Float[np.ndarray, "devices devices"],
    ) -> Mixture:
        """Q'_n for each device (Eq. 21)."""
        sets = sets_of(uploads, plan)
        return Mixture(aggregate(sets, weights))
