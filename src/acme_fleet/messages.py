"""The only types that cross a tier border.

Frozen, no unknown fields, tensors by name. No type has a field for samples or their labels. What
arrives is checked here for type, names, dtypes, lengths and finite values, and by the role that
gets it. ``limits`` of a type bound the bytes of a message before any of them is parsed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
from acme_fleet.outside import one_line

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.int8)

MOST_DEVICES = 10_000
"""Of a cluster; what a message says of each of them is no longer than that."""
MOST_BYTES = 2**31 - 1
"""Of any message."""
REASON_LENGTH = 300
_DEEPEST = 50


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


def _check_depth(document: dict[str, Any]) -> dict[str, Any]:
    """Deeper ones can be read, and not written again."""
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [value for of in inner for value in of if isinstance(value, dict | list)]
        if not level:
            return document
    raise ValueError(f"a document is nested deeper than {_DEEPEST}")


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
ClassName = Annotated[str, Field(max_length=200)]
ClassNames = Annotated[list[ClassName], Field(min_length=2, max_length=2**16)]
Document = Annotated[dict[str, JsonValue], Field(max_length=1000), AfterValidator(_check_depth)]
Reason = Annotated[str, AfterValidator(lambda text: one_line(text, REASON_LENGTH))]
Description = Annotated[str, AfterValidator(lambda text: one_line(text, 2000))]
_PerDevice = Field(max_length=MOST_DEVICES)
_PerLayer = Field(max_length=1000)


@dataclass(frozen=True)
class Limits:
    """Most that a message of a type can be, for any fleet.

    Attributes:
        header_bytes: JSON, with a tensor's name, type and shape for each tensor.
        tensor_bytes: of all tensors.
        nested: lists and objects in that JSON; each takes much more memory than bytes.
    """

    header_bytes: int
    tensor_bytes: int = 0
    nested: int = 100


# A model with its tokenizer, whose merges of tokens are lists; and what a device has of a header.
_MODEL = Limits(2**25, MOST_BYTES, nested=2**20)
_HEADER = Limits(2**22, 2**28, nested=2**17)


class Message(BaseModel):
    """Base of all messages."""

    limits: ClassVar[Limits] = Limits(2**10)

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

    limits = Limits(2**23, nested=2**16)

    name: Name
    parts: Annotated[list[Part], Field(min_length=1, max_length=MOST_DEVICES)]
    """The whole cluster or, with ``selection.matching: device``, each kind of device."""


class BackboneAssignment(Message):
    """Cloud to edge: θ~_s = (θ0^H, δ(θ0^B, w, d)), the backbone chosen for some parts of it."""

    limits = _MODEL

    parts: Annotated[list[Count], Field(min_length=1, max_length=MOST_DEVICES)]
    """Their places in the :class:`ClusterProfile`."""
    width: Width
    depth: PositiveCount
    config: Document
    backbone: Tensors
    classifier: Tensors
    class_names: ClassNames
    preprocessing: Document


# --- edge <-> device --------------------------------------------------------------------------


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

    limits = _MODEL

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
    public_keys: Annotated[dict[Name, PublicKey], _PerDevice] = {}
    weights: Annotated[dict[Name, Share], _PerDevice] = {}
    nonce: Nonce = ""


class ImportanceUpload(Message):
    """Device to edge: Q_n summed per neuron (Eq. 17-18), by layer, shape ``(channels,)``.

    Where header weights are mixed (``personalization.mix``), also the header as it is now, and
    with ``classifier: holders`` the numbers of the classes in the device's train set. In a masked
    round ``masked`` alone: a masked share for each receiver, shape ``(neurons,)``.
    """

    limits = _HEADER

    round: Count
    importance: Tensors
    masked: Shares = {}
    header: Tensors = {}
    held: Kept = []
    kept: Annotated[dict[Name, Kept], _PerLayer] = {}
    """Channels that pruning has left, by layer; a layer that is not listed has all."""


class ImportanceUpdate(Message):
    """Edge to device: Q'_n, mixed from similar peers (Eq. 21), by layer, and mixed weights.

    In a masked round ``masked`` holds the ``sum`` of all shares for the device.
    """

    limits = _HEADER

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

    limits = Limits(2**25, nested=2**16)

    name: GroupName
    genotype: Document
    header: Description
    contenders: Annotated[list[HeaderContender], Field(max_length=100)]
    """The header that was searched, then what it was compared with."""
    device_names: Annotated[list[Name], _PerDevice]
    similarity: Annotated[list[Annotated[list[Share], _PerDevice]], _PerDevice]
    reports: Annotated[list[DeviceReport], _PerDevice]
    lost: Annotated[dict[Name, Reason], _PerDevice]
    """Devices that did not finish, and why."""
    missed: Annotated[dict[Name, PositiveCount], _PerDevice] = {}
    """Rounds that devices missed, or in which what they sent was refused."""
    shortened: Annotated[dict[Name, Share], _PerDevice] = {}
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
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse tensors that are not exactly what the receiver expects.

    Raises:
        ProtocolError: naming the tensors that are missing, unknown or of another shape or type.
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
        if dtype not in (None, tensors[name].dtype):
            raise ProtocolError(f"{what}: {name} is {tensors[name].dtype}, expected {dtype}")


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
        ProtocolError: if names, shapes, types or signs are wrong, or all are zero.
    """
    shapes = {name: (size,) for name, size in channels.items()}
    check_shapes(importance, shapes, what, torch.float32)
    total = math.fsum(float(values.double().sum()) for values in importance.values())
    if any(bool((values < 0).any()) for values in importance.values()) or total <= 0:
        raise ProtocolError(f"{what} must be non-negative and not all zero (sum {total:g})")
