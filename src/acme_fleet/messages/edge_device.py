"""Messages between an edge server and a device."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
    NonNegativeFloat,
)
from torch import Tensor

from acme_fleet.config.devices import Energy, Name
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import (
    HEADER_LIMITS,
    MODEL_LIMITS,
    ClassNames,
    Count,
    Document,
    Kept,
    Limits,
    Message,
    Nonce,
    OneTensor,
    PerDevice,
    PerLayer,
    PositiveCount,
    PublicKey,
    Share,
    Shares,
    Tensors,
)


class ProfileRequest(Message):
    """Cloud to edge, edge to device: who are you?"""


class DeviceProfile(Message):
    """Device to edge: storage C_n and energy constants."""

    limits = Limits(2**11)

    name: Name
    storage_bytes: PositiveCount
    energy: Energy


class HeaderAssignment(Message):
    """Edge to device: the coarse model, its backbone frozen from here on.

    ``linear`` is a plain linear header on the same backbone, trained on the same data: the
    device reports how it fares, so that the searched header's worth is known.
    """

    limits = MODEL_LIMITS

    config: Document
    backbone: Tensors
    plan: Document
    header: Tensors
    linear: Tensors
    class_names: ClassNames
    preprocessing: Document


class FeatureSample(Message):
    """Device to edge, once: features of a few samples, or sketches of them (Eq. 19), or no row.

    Shape ``(samples, hidden)`` or ``(samples, sketch_dim)``; they count ``scale`` times.
    """

    limits = Limits(2**10, 2**27)

    features: OneTensor
    scale: Annotated[float, Field(gt=0)] = 1.0
    public_key: PublicKey = ""
    """X25519; empty without masking."""

    def rows(self) -> Tensor:
        """The features or sketches as numbers, double precision."""
        return self.features.double() * self.scale


class RoundStart(Message):
    """Edge to device: train, and tell how important each neuron was.

    For a masked round also who takes part, and this device's weight in each one's mixture.
    """

    limits = Limits(2**22)

    round: Count
    public_keys: Annotated[dict[Name, PublicKey], PerDevice] = {}
    weights: Annotated[dict[Name, Share], PerDevice] = {}
    nonce: Nonce = ""

    @property
    def occasion(self) -> str:
        """Its round."""
        return f"round {self.round + 1}"


class ImportanceUpload(Message):
    """Device to edge: Q_n summed per neuron (Eq. 17-18), by layer, shape ``(channels,)``.

    Where header weights are mixed (``personalization.mix``), also the header as it is now, and
    with ``classifier: holders`` the numbers of the classes in the device's train set. In a masked
    round ``masked`` alone: a masked share for each receiver, shape ``(neurons,)``.
    """

    limits = HEADER_LIMITS

    round: Count
    importance: Tensors
    masked: Shares = {}
    header: Tensors = {}
    held: Kept = []
    kept: Annotated[dict[Name, Kept], PerLayer] = {}
    """Channels that pruning has left, by layer; a layer that is not listed has all."""


class ImportanceUpdate(Message):
    """Edge to device: Q'_n, mixed from similar peers (Eq. 21), by layer, and mixed weights.

    In a masked round ``masked`` holds the ``sum`` of all shares for the device.
    """

    limits = HEADER_LIMITS

    round: Count
    importance: Tensors
    header: Tensors = {}
    masked: Shares = {}
    nonce: Nonce = ""

    @property
    def occasion(self) -> str:
        """Its round."""
        return f"round {self.round + 1}"


class RoundReport(Message):
    """Device to edge: how many neurons are left after pruning."""

    round: Count
    neurons: Count
    changed: bool


class ReportRequest(Message):
    """Edge to device: finish, save the model, report."""


class DeviceReport(Message):
    """Device to edge to cloud: what the device ended with, as numbers."""

    limits = Limits(2**11)

    name: Name
    size_bytes: PositiveCount
    params: PositiveCount
    accuracy_coarse: Share
    accuracy: Share
    accuracy_linear: Share
    test_samples: PositiveCount
    latency_s: NonNegativeFloat
    neurons_coarse: Count
    neurons: Count
    raw_data_bytes: Count


def check_features(features: Tensor, most: int, hidden: int, what: str) -> None:
    """Refuse a feature sample that is not 1 to ``most`` rows of ``hidden`` numbers, or none of 0.

    Raises:
        ProtocolError: naming the shape.
    """
    shape, counts = tuple(features.shape), range(min(1, most), most + 1)
    if len(shape) != 2 or shape[0] not in counts or shape[1] != hidden:
        raise ProtocolError(f"{what} has shape {shape}, expected at most ({most}, {hidden})")
