"""Messages between the cloud server and an edge server."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from acme_fleet.config.backbone import Width
from acme_fleet.config.devices import Name, Part, Precision
from acme_fleet.messages.base import (
    MODEL_LIMITS,
    MOST_DEVICES,
    ClassNames,
    Description,
    Document,
    GroupName,
    Limits,
    Message,
    PerDevice,
    Reason,
    RunIdentity,
    Tensors,
    Weights,
)
from acme_fleet.messages.edge_device import DeviceReport
from acme_fleet.messages.results import Count, HeaderContender, PositiveCount, Share


class ClusterProfile(Message):
    """Edge to cloud: statistics of the cluster N_s, and no device's identity."""

    limits = Limits(2**23, nested=2**16)

    name: Name
    parts: Annotated[list[Part], Field(min_length=1, max_length=MOST_DEVICES)]
    """The whole cluster or, with ``selection.matching: device``, each kind of device."""


class TakenGroup(BaseModel):
    """A group of devices that begins with what one of an earlier run has finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: Annotated[list[Count], Field(min_length=1, max_length=MOST_DEVICES)]
    """Places in the :class:`ClusterProfile`."""
    before: GroupName
    """The group of the earlier run, which had the same backbone."""
    settled: Annotated[list[Name], PerDevice]
    """Devices that keep what they finished there; the others are computed."""


class TakeoverRequest(Message):
    """Cloud to edge: begin this run with what you and your devices finished in an earlier one."""

    limits = Limits(2**22, nested=2**16)

    run: RunIdentity
    """The earlier one."""
    groups: Annotated[list[TakenGroup], Field(min_length=1, max_length=MOST_DEVICES)]


class TakeoverReport(Message):
    """Edge to cloud: it has begun, or which devices that should keep their models cannot."""

    limits = Limits(2**23)

    refused: Annotated[dict[Name, Reason], PerDevice]


class BackboneAssignment(Message):
    """Cloud to edge: θ~_s = (θ0^H, δ(θ0^B, w, d)), the backbone chosen for some parts of it.

    ``hidden`` is its share of the hidden size; its weights are stored at ``precision``.
    """

    limits = MODEL_LIMITS

    parts: Annotated[list[Count], Field(min_length=1, max_length=MOST_DEVICES)]
    """Their places in the :class:`ClusterProfile`."""
    width: Width
    depth: PositiveCount
    hidden: Width = 1.0
    precision: Precision = "float32"
    config: Document
    backbone: Weights
    classifier: Tensors
    class_names: ClassNames
    preprocessing: Document

    @property
    def occasion(self) -> str:
        """The first of its parts stands for the group."""
        return f"group {1 + min(self.parts)}"


class ClusterReport(Message):
    """Edge to cloud: the header that was searched, who listened to whom, and the devices.

    ``name`` is the cluster's, with a number where it has several groups of devices.
    """

    limits = Limits(2**25, nested=2**16)

    name: GroupName
    genotype: Document
    header: Description
    contenders: Annotated[list[HeaderContender], Field(max_length=100)]
    """The header that was searched, then what it was compared with."""
    device_names: Annotated[list[Name], PerDevice]
    similarity: Annotated[list[Annotated[list[Share], PerDevice]], PerDevice]
    """Ŵ_s, a row for each receiver; none where a large cluster's devices listen to all alike."""
    columns: Annotated[list[Annotated[list[Count], PerDevice]], PerDevice] = []
    """Places in ``device_names`` of the weights in each row, where those are not all."""
    reports: Annotated[list[DeviceReport], PerDevice]
    lost: Annotated[dict[Name, Reason], PerDevice]
    """Devices that did not finish, and why."""
    missed: Annotated[dict[Name, PositiveCount], PerDevice] = {}
    """Rounds that devices missed, or in which what they sent was refused."""
    shortened: Annotated[dict[Name, Share], PerDevice] = {}
    """Devices whose header's update was scaled down, and the least scale."""
