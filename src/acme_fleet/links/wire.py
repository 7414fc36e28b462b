"""Messages as bytes: one safetensors blob, its JSON metadata holding everything but tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from acme_fleet.errors import DamagedError, ProtocolError
from acme_fleet.messages import cloud_edge, edge_device  # noqa: F401 - registered by import
from acme_fleet.messages.base import MOST_BYTES, Limits, Message
from acme_fleet.outside import one_line, reading
from acme_fleet.runs.sealed import read_sealed

Kept = TypeVar("Kept", bound=Message)
MAX_BYTES = MOST_BYTES
MOST_TENSORS = 20_000
_SEPARATOR = "/"
_MALFORMED = "a malformed message was refused"


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

    Lengths are checked before anything is parsed: memory stays near that of a valid message.

    Raises:
        ProtocolError: if it is too large, malformed, or not one of the expected types.
    """
    types = {kind.__name__: kind for kind in expected}
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes exceeds the limit of {MAX_BYTES}")
    header_bytes = int.from_bytes(data[:8], "little")
    if not any(_readable(data, header_bytes, known.limits) for known in types.values()):
        raise ProtocolError(
            f"a header of {header_bytes} bytes exceeds the limit of {' or '.join(types)}"
        )
    kind, fields, tensors = _header(data[8 : 8 + header_bytes])
    if kind not in types:
        raise ProtocolError(f"unexpected message of type {one_line(kind, 100)!r}")
    limits, tensor_bytes = types[kind].limits, len(data) - 8 - header_bytes
    if not _readable(data, header_bytes, limits) or tensor_bytes > limits.tensor_bytes:
        raise ProtocolError(f"{kind} of {len(data)} bytes exceeds its limit, {limits}")
    if tensors > MOST_TENSORS:
        raise ProtocolError(f"{kind} has {tensors} tensors, at most {MOST_TENSORS}")
    with reading(_MALFORMED, ProtocolError):
        loaded = load(data)
    return _rebuilt(types[kind], fields, loaded)


def _readable(data: bytes, header_bytes: int, limits: Limits) -> bool:
    """True if the header may be parsed; its bytes are only counted."""
    if header_bytes > limits.header_bytes:
        return False
    end = 8 + header_bytes
    return data.count(b"[", 8, end) + data.count(b"{", 8, end) <= limits.nested


def _header(text: bytes) -> tuple[str, dict[str, Any], int]:
    """A message's type, its fields without tensors, and the number of its tensors."""
    with reading(_MALFORMED, ProtocolError):
        header = json.loads(text, object_pairs_hook=_once)
        ((kind, body),) = header["__metadata__"].items()
        fields = json.loads(body, object_pairs_hook=_once)
        # Python reads NaN and halves of characters, and JSON elsewhere could not hold them.
        json.dumps([kind, fields], allow_nan=False, ensure_ascii=False).encode()
    if not isinstance(fields, dict):
        raise ProtocolError(f"{_MALFORMED}: it is no JSON object")
    return kind, fields, len(header) - 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which readers would differ if a key were there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ProtocolError(f"{_MALFORMED}: a key is there twice")
    return found


def _rebuilt(kind: type[Message], fields: dict[str, Any], tensors: Mapping[str, Tensor]) -> Message:
    for name, tensor in tensors.items():
        field, _, key = name.partition(_SEPARATOR)
        group = fields.setdefault(field, {} if key else tensor)
        if key and isinstance(group, dict):
            group[key] = tensor
        elif group is not tensor:
            raise ProtocolError(f"{_MALFORMED}: {one_line(field, 100)} is there twice")
    for field, info in kind.model_fields.items():
        if info.is_required() and field not in fields:
            fields[field] = {}  # an empty set of tensors leaves no trace in the blob
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ProtocolError(f"{_MALFORMED}: {kind.__name__}: {mistake(error)}") from error


def read_message(path: Path, kind: type[Kept]) -> Kept:
    """A message that a role keeps on its disk, in a sealed file.

    Raises:
        DamagedError: if the file is missing or damaged, or holds another message.
    """
    try:
        message = decode(read_sealed(path), [kind])
    except ProtocolError as error:
        raise DamagedError(f"cannot read {path}: {error}") from error
    assert isinstance(message, kind)
    return message


def mistake(error: ValidationError) -> str:
    """The first mistakes in a message or a document, in one line."""
    told = []
    for each in error.errors(include_url=False, include_context=False, include_input=False)[:3]:
        place = ".".join(str(part) for part in each["loc"])
        told.append(f"{one_line(place, 80)}: {each['msg']}")
    return one_line("; ".join(told), 280)
