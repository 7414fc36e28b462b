"""One round of Algorithm 2 at the edge: what the devices sent, mixed for each of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from acme_fleet.edge.aggregation import aggregate, mix_headers
from acme_fleet.errors import ProtocolError
from acme_fleet.fleet import Mix
from acme_fleet.messages import ImportanceUpdate, ImportanceUpload, check_importance, check_shapes
from acme_fleet.models.header_plan import HeaderPlan


def check_upload(name: str, upload: ImportanceUpload, plan: HeaderPlan, mix: Mix) -> None:
    """Refuse what does not fit the coarse header's plan.

    Raises:
        ProtocolError: naming the device and what is wrong.
    """
    channels = dict.fromkeys(plan.layers, plan.genotype.channels)
    check_importance(upload.importance, channels, f"the importance of {name}")
    shapes = {} if mix == "importance" else plan_of(name, upload, plan).shapes()
    check_shapes(upload.header, shapes, f"the header of {name}")


def plan_of(name: str, upload: ImportanceUpload, plan: HeaderPlan) -> HeaderPlan:
    """What pruning has left of a device's header.

    Raises:
        ProtocolError: if the device kept what does not exist.
    """
    try:
        return HeaderPlan.model_validate({**plan.model_dump(), "kept": upload.kept})
    except ValueError as error:
        raise ProtocolError(f"the channels that {name} kept: {error}") from error


def mixed_updates(
    uploads: Mapping[str, ImportanceUpload],
    plan: HeaderPlan,
    coarse: Mapping[str, Tensor],
    weights: Float[np.ndarray, "devices devices"],
    mix: Mix,
) -> dict[str, ImportanceUpdate]:
    """What each device gets back.

    Args:
        uploads: checked ones, of one round.
        plan, coarse: the header that all received.
        weights: Ŵ, rows and columns in the order of ``uploads``.
        mix: what is mixed by Ŵ; what is not comes back as the device sent it, or stays there.
    """
    sets = {name: upload.importance for name, upload in uploads.items()}
    importance = aggregate(sets, np.eye(len(sets)) if mix == "weights" else weights)
    headers: Mapping[str, dict[str, Tensor]] = {name: {} for name in uploads}
    if mix != "importance":
        sent = {name: upload.header for name, upload in uploads.items()}
        plans = {name: plan_of(name, upload, plan) for name, upload in uploads.items()}
        headers = mix_headers(sent, plans, weights, coarse)
    return {
        name: ImportanceUpdate(
            round=upload.round, importance=importance[name], header=headers[name]
        )
        for name, upload in uploads.items()
    }
