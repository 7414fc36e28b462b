"""Messages between an edge server and a device."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from acme_fleet.config.devices import Energy, Name, Precisions
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import (
    HEADER_LIMITS,
    MODEL_LIMITS,
    ClassNames,
    Document,
    Held,
    Kept,
    KeyOrNone,
    Limits,
    Message,
    Nonce,
    OneTensor,
    PerDevice,
    PerLayer,
    PublicKey,
    RunIdentity,
    Shares,
    ShareSum,
    Tensors,
    Weights,
)
from acme_fleet.messages.results import Count, DeviceResult, PositiveCount, Share


class ProfileRequest(Message):
    """Cloud to edge, edge to device: who are you?"""


class DeviceProfile(Message):
    """Device to edge: storage C_n and energy constants."""

    limits = Limits(2**11)

    name: Name
    storage_bytes: PositiveCount
    energy: Energy
    precisions: Precisions


class HeaderAssignment(Message):
    """Edge to device: the coarse model, its backbone frozen from here on.

    ``linear`` is a plain linear header on the same backbone, trained on the same data: the
    device reports how it fares, so that the searched header's worth is known.
    """

    limits = MODEL_LIMITS

    config: Document
    backbone: Weights
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
    public_key: KeyOrNone = ""
    """X25519; empty without masking."""

    def rows(self) -> Tensor:
        """The features or sketches as numbers, double precision."""
        return self.features.double() * self.scale


# --- the rounds of Algorithm 2: a request, an upload and an update for each rule ---------------


class RoundMessage(Message, abstract=True):
    """A message of one round."""

    round: Count

    @property
    def occasion(self) -> str:
        """Its round."""
        return f"round {self.round + 1}"


class Start(RoundMessage, abstract=True):
    """Edge to device: train, and upload what the personalisation rule asks for."""


class RoundStart(Start):
    """The request of rules whose uploads the edge server reads."""


class MaskedRoundStart(Start):
    """The request of masked rounds: who takes part, and this device's weight in each mixture."""

    limits = Limits(2**22)

    public_keys: Annotated[dict[Name, PublicKey], Field(min_length=1), PerDevice]
    weights: Annotated[dict[Name, Share], PerDevice]
    nonce: Nonce

    @model_validator(mode="after")
    def _one_weight_for_each_key(self) -> Self:
        if self.weights.keys() != self.public_keys.keys():
            raise ValueError("a masked round names other receivers than keys")
        return self


class Upload(RoundMessage, abstract=True):
    """Device to edge: its part in a round, as the personalisation rule asks for it."""

    limits = HEADER_LIMITS


class OpenUpload(Upload, abstract=True):
    """Q_n summed per neuron (Eq. 17-18), by layer, shape ``(channels,)``, for the edge to read."""

    importance: Tensors


class ImportanceUpload(OpenUpload):
    """The upload of the rule that mixes importance alone."""


class HeaderUpload(OpenUpload, abstract=True):
    """Also the header as it is now, for rules that mix weights."""

    header: Tensors
    kept: Annotated[dict[Name, Kept], PerLayer] = {}
    """Channels that pruning has left, by layer; a layer that is not listed has all."""


class WeightsUpload(HeaderUpload):
    """The upload of the rule that mixes the weights of all."""


class ByClassUpload(HeaderUpload):
    """Also the classes of the train set, for the rule that mixes rows of a classifier by class."""

    held: Held
    """Numbers of the classes in the device's train set."""


class MaskedUpload(Upload):
    """A masked share for each receiver, shape ``(neurons,)``, and nothing else."""

    shares: Shares


class Update(RoundMessage, abstract=True):
    """Edge to device: the mixture of similar peers' uploads for this device."""

    limits = HEADER_LIMITS


class OpenUpdate(Update, abstract=True):
    """Q'_n, mixed from similar peers (Eq. 21), by layer, shape ``(channels,)``."""

    importance: Tensors


class ImportanceUpdate(OpenUpdate):
    """The update of the rule that mixes importance alone."""


class WeightsUpdate(OpenUpdate):
    """Also the mixed header, in the shapes of the device's own, for rules that mix weights."""

    header: Tensors


class MaskedUpdate(Update):
    """The sum of all masked shares for the device, shape ``(neurons,)``."""

    total: ShareSum
    nonce: Nonce


class RoundReport(Message):
    """Device to edge: how many neurons are left after pruning."""

    round: Count
    neurons: Count
    changed: bool


class ReportRequest(Message):
    """Edge to device: finish, save the model, report."""


class KeepRequest(Message):
    """Edge to device: keep what you finished in an earlier run, unchanged, and report it again."""

    run: RunIdentity


class DeviceReport(DeviceResult, Message):
    """Device to edge to cloud: its result."""

    limits = Limits(2**11)


def check_features(features: Tensor, most: int, hidden: int, what: str) -> None:
    """Refuse a feature sample that is not 1 to ``most`` rows of ``hidden`` numbers, or none of 0.

    Raises:
        ProtocolError: naming the shape.
    """
    shape, counts = tuple(features.shape), range(min(1, most), most + 1)
    if len(shape) != 2 or shape[0] not in counts or shape[1] != hidden:
        raise ProtocolError(f"{what} has shape {shape}, expected at most ({most}, {hidden})")
