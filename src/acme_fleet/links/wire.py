"""Messages as bytes: one safetensors blob, its JSON metadata holding everything but tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.messages import Message

MAX_BYTES = 2**31 - 1
_SEPARATOR = "/"


def encode(message: Message) -> bytes:
    """The bytes that are sent; their number is what is counted."""
    tensors: dict[str, Tensor] = {}
    for field, value in message:
        if isinstance(value, Tensor):
            tensors[field] = _copy(value)
        elif isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, Tensor):
                    tensors[f"{field}{_SEPARATOR}{name}"] = _copy(item)
    fields = {name.partition(_SEPARATOR)[0] for name in tensors}
    body = message.model_dump_json(exclude=fields)
    # One entry: safetensors writes several in any order, and equal messages are equal bytes.
    return save(tensors, metadata={type(message).__name__: body})


def _copy(tensor: Tensor) -> Tensor:
    """Contiguous memory of its own: safetensors refuses tensors that share theirs."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def decode(data: bytes, expected: Iterable[type[Message]]) -> Message:
    """Check and rebuild a message. Nothing in ``data`` is trusted.

    Raises:
        ProtocolError: if it is too large, malformed, or not one of the expected types.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes exceeds the limit of {MAX_BYTES}")
    try:
        length = int.from_bytes(data[:8], "little")
        ((kind, body),) = json.loads(data[8 : 8 + length])["__metadata__"].items()
        message_type = Message.registry.get(kind)
        if message_type is None or message_type not in tuple(expected):
            raise ProtocolError(f"unexpected message of type {kind!r}")
        fields = json.loads(body)
        # Python reads NaN and halves of characters, and JSON elsewhere could not hold them.
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
        for name, tensor in load(data).items():
            field, _, key = name.partition(_SEPARATOR)
            if key:
                fields.setdefault(field, {})[key] = tensor
            elif fields.setdefault(field, tensor) is not tensor:
                raise ProtocolError(f"{field} is there twice")
        for field, info in message_type.model_fields.items():
            if info.is_required() and field not in fields:
                fields[field] = {}  # an empty set of tensors leaves no trace in the blob
        return message_type.model_validate(fields)
    except ProtocolError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        ValidationError,
        RecursionError,
    ) as error:
        raise ProtocolError(f"a malformed message was refused: {error}") from error
