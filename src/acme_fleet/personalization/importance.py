"""Rule ``importance``, the paper's: devices share the importance of their neurons (Eq. 21)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.edge_device import ImportanceUpload, RoundStart, check_importance
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.personalization.base import Mixture, Own, Rule, Upload
from acme_fleet.privacy.protection import ImportanceSet


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


class ImportanceRule(Rule):
    """Algorithm 2 as in the paper: importance sets alone are sent and mixed."""

    def upload(self, start: RoundStart, own: Own) -> ImportanceUpload:
        """The device's importance set."""
        return ImportanceUpload(round=start.round, importance=dict(own.importance))

    def check(
        self, name: str, upload: ImportanceUpload, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse an importance set, a header or classes that were not asked for like this."""
        if upload.masked:
            raise ProtocolError(f"{name} sent masked shares that nobody asked for")
        channels = dict.fromkeys(plan.layers, plan.genotype.channels)
        check_importance(upload.importance, channels, f"the importance of {name}")
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
        sets = {name: upload.importance for name, upload in uploads.items()}
        return Mixture(aggregate(sets, weights))
