"""The only types that cross a tier border.

Frozen, no unknown fields, tensors by name. No type has a field for samples or their labels. What
arrives is checked here for type, names, dtypes and finite values, and by the role that gets it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
)
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.fleet import Energy, Name, Width
from acme_fleet.hardware import Part

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.int8)


def _check_tensor(tensor: Tensor) -> Tensor:
    if tensor.dtype not in _DTYPES or tensor.ndim > 5:
        raise ValueError(f"a {tensor.dtype} tensor of {tensor.ndim} dimensions is not accepted")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError("a tensor holds values that are not finite")
    return tensor


def _check_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a tensor name")
        _check_tensor(tensor)
    return tensors


def _check_shares(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(tensor.dtype != torch.int32 for tensor in tensors.values()):
        raise ValueError("masked shares are whole numbers of 32 bits")
    return tensors


OneTensor = Annotated[Tensor, AfterValidator(_check_tensor)]
Tensors = Annotated[dict[str, Tensor], Field(max_length=20_000), AfterValidator(_check_names)]
Shares = Annotated[Tensors, AfterValidator(_check_shares)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
PositiveCount = Annotated[int, Field(ge=1, le=2**53)]
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:[0-9]{1,6})?$")]
Kept = Annotated[list[Annotated[int, Field(ge=0, lt=2**16)]], Field(max_length=2**16)]
PublicKey = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
ClassNames = Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=2)]


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )
    registry: ClassVar[dict[str, type[Message]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        Message.registry[cls.__name__] = cls


# --- cloud <-> edge ---------------------------------------------------------------------------


class ProfileRequest(Message):
    """Cloud to edge, edge to device: who are you?"""


class ClusterProfile(Message):
    """Edge to cloud: statistics of the cluster N_s, and no device's identity."""

    name: Name
    parts: Annotated[list[Part], Field(min_length=1, max_length=100_000)]
    """The whole cluster or, with ``selection.matching: device``, each kind of device."""


class BackboneAssignment(Message):
    """Cloud to edge: θ~_s = (θ0^H, δ(θ0^B, w, d)), the backbone chosen for some parts of it."""

    parts: Annotated[list[Count], Field(min_length=1)]
    """Their places in the :class:`ClusterProfile`."""
    width: Width
    depth: PositiveCount
    config: dict[str, JsonValue]
    backbone: Tensors
    classifier: Tensors
    class_names: ClassNames
    preprocessing: dict[str, JsonValue]


# --- edge <-> device --------------------------------------------------------------------------


class DeviceProfile(Message):
    """Device to edge: storage C_n and energy constants."""

    name: Name
    storage_bytes: PositiveCount
    energy: Energy


class HeaderAssignment(Message):
    """Edge to device: the coarse model, its backbone frozen from here on.

    ``linear`` is a plain linear header on the same backbone, trained on the same data: the
    device reports how it fares, so that the searched header's worth is known.
    """

    config: dict[str, JsonValue]
    backbone: Tensors
    plan: dict[str, JsonValue]
    header: Tensors
    linear: Tensors
    class_names: ClassNames
    preprocessing: dict[str, JsonValue]


class FeatureSample(Message):
    """Device to edge, once: features of a few samples, or sketches of them (Eq. 19), or no row.

    Shape ``(samples, hidden)`` or ``(samples, sketch_dim)``; they count ``scale`` times.
    """

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

    round: Count
    public_keys: dict[Name, PublicKey] = {}
    weights: dict[Name, Share] = {}
    nonce: Nonce = ""


class ImportanceUpload(Message):
    """Device to edge: Q_n summed per neuron (Eq. 17-18), by layer, shape ``(channels,)``.

    Where header weights are mixed (``personalization.mix``), also the header as it is now, and
    with ``classifier: holders`` the numbers of the classes in the device's train set. In a masked
    round ``masked`` alone: a masked share for each receiver, shape ``(neurons,)``.
    """

    round: Count
    importance: Tensors
    masked: Shares = {}
    header: Tensors = {}
    held: Kept = []
    kept: dict[Name, Kept] = {}
    """Channels that pruning has left, by layer; a layer that is not listed has all."""


class ImportanceUpdate(Message):
    """Edge to device: Q'_n, mixed from similar peers (Eq. 21), by layer, and mixed weights.

    In a masked round ``masked`` holds the ``sum`` of all shares for the device.
    """

    round: Count
    importance: Tensors
    header: Tensors = {}
    masked: Shares = {}
    nonce: Nonce = ""


class RoundReport(Message):
    """Device to edge: how many neurons are left after pruning."""

    round: Count
    neurons: Count
    changed: bool


class ReportRequest(Message):
    """Edge to device: finish, save the model, report."""


class DeviceReport(Message):
    """Device to edge to cloud: what the device ended with, as numbers."""

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


class HeaderContender(BaseModel):
    """A header that an edge server tried, on its samples for the final choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    params: PositiveCount
    accuracy: Share
    loss: NonNegativeFloat
    evaluated: Count


class ClusterReport(Message):
    """Edge to cloud: the header that was searched, who listened to whom, and the devices.

    ``name`` is the cluster's, with a number where it has several groups of devices.
    """

    name: GroupName
    genotype: dict[str, JsonValue]
    header: str
    contenders: list[HeaderContender]
    """The header that was searched, then what it was compared with."""
    device_names: list[Name]
    similarity: list[list[Share]]
    reports: list[DeviceReport]
    lost: dict[Name, str]
    """Devices that did not finish, and why."""
    missed: dict[Name, PositiveCount] = {}
    """Rounds that devices missed, or in which what they sent was refused."""
    shortened: dict[Name, Share] = {}
    """Devices whose header's update was scaled down, and the least scale."""


def occasion_of(request: Message) -> str:
    """What tells a request from others of its type between the same two: a round, or a group.

    Requests of one occasion are one message that was sent again. A reply has that of its request.
    """
    match request:
        case RoundStart() | ImportanceUpdate():
            return f"round {request.round + 1}"
        case BackboneAssignment():
            return f"group {1 + min(request.parts)}"
    return ""


def check_shapes(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Refuse tensors that are not exactly what the receiver expects.

    Raises:
        ProtocolError: naming the tensors that are missing, unknown or of another shape.
    """
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ProtocolError(f"{what} lacks {', '.join(missing[:3])}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ProtocolError(f"{what} has unknown {', '.join(unknown[:3])}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ProtocolError(
                f"{what}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}"
            )


def check_features(features: Tensor, most: int, hidden: int, what: str) -> None:
    """Refuse a feature sample that is not 1 to ``most`` rows of ``hidden`` numbers, or none of 0.

    Raises:
        ProtocolError: naming the shape.
    """
    shape, counts = tuple(features.shape), range(min(1, most), most + 1)
    if len(shape) != 2 or shape[0] not in counts or shape[1] != hidden:
        raise ProtocolError(f"{what} has shape {shape}, expected at most ({most}, {hidden})")


def check_importance(
    importance: Mapping[str, Tensor], channels: Mapping[str, int], what: str
) -> None:
    """Refuse an importance set that is not one non-negative number for each neuron.

    Raises:
        ProtocolError: if names, shapes or signs are wrong, or all are zero.
    """
    check_shapes(importance, {name: (size,) for name, size in channels.items()}, what)
    total = math.fsum(float(values.double().sum()) for values in importance.values())
    if any(bool((values < 0).any()) for values in importance.values()) or total <= 0:
        raise ProtocolError(f"{what} must be non-negative and not all zero (sum {total:g})")
