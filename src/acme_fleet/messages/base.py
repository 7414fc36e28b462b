"""The base of all messages, and the types of their fields."""

from __future__ import annotations

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
)
from torch import Tensor

from acme_fleet.errors import ProtocolError
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


def _check_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As for others; at int4 two weights are in a byte."""
    halves = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.uint8}
    if any(tensor.ndim != 2 for tensor in halves.values()):
        raise ValueError("weights of four bits are a matrix")
    _check_names({name: tensor.view(torch.int8) for name, tensor in halves.items()})
    _check_names({name: tensor for name, tensor in tensors.items() if name not in halves})
    return tensors


def _check_shares(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(tensor.dtype != torch.int32 for tensor in tensors.values()):
        raise ValueError("masked shares are whole numbers of 32 bits")
    return tensors


def _check_sum(total: Tensor) -> Tensor:
    if total.dtype != torch.int32 or total.ndim != 1:
        raise ValueError("a sum of masked shares is a vector of whole numbers of 32 bits")
    return total


def _check_ascending(numbers: list[int]) -> list[int]:
    if numbers != sorted(set(numbers)):
        raise ValueError(f"numbers must ascend: {numbers[:5]}")
    return numbers


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
Weights = Annotated[dict[str, Tensor], Field(max_length=20_000), AfterValidator(_check_weights)]
Shares = Annotated[Tensors, Field(min_length=1), AfterValidator(_check_shares)]
ShareSum = Annotated[OneTensor, AfterValidator(_check_sum)]
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:[0-9]{1,6})?$")]
Kept = Annotated[list[Annotated[int, Field(ge=0, lt=2**16)]], Field(max_length=2**16)]
Held = Annotated[Kept, Field(min_length=1), AfterValidator(_check_ascending)]
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeyOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
RunIdentity = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
ClassName = Annotated[str, Field(max_length=200)]
ClassNames = Annotated[list[ClassName], Field(min_length=1, max_length=2**16)]
Document = Annotated[dict[str, JsonValue], Field(max_length=1000), AfterValidator(_check_depth)]
Reason = Annotated[str, AfterValidator(lambda text: one_line(text, REASON_LENGTH))]
Description = Annotated[str, AfterValidator(lambda text: one_line(text, 2000))]
PerDevice = Field(max_length=MOST_DEVICES)
PerLayer = Field(max_length=1000)


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
MODEL_LIMITS = Limits(2**25, MOST_BYTES, nested=2**20)
HEADER_LIMITS = Limits(2**22, 2**28, nested=2**17)


class Message(BaseModel):
    """Base of all messages. An ``abstract`` one is a kind of them, and is itself never sent."""

    limits: ClassVar[Limits] = Limits(2**10)

    @property
    def occasion(self) -> str:
        """The round or group of a request, against others of its type between the same two.

        Requests of one occasion are one message that was sent again. A reply has that of its
        request.
        """
        return ""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )
    registry: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, abstract: bool = False, **_: Any) -> None:
        if not abstract:
            Message.registry[cls.__name__] = cls


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
