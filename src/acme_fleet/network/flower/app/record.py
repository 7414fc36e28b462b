"""A frame in a Flower message.

Flower moves every part of a message by a request of its own. So a small payload goes with the
header, which makes three parts; a large one is an array, six parts and more, in pieces of 5 MiB.
"""

from __future__ import annotations

import json

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from acme_fleet.network.flower.frames import Header, parse_header

SMALL = 2**20
"""Bytes of a payload that goes with the header."""


def pack(header: Header, payload: bytes) -> RecordDict:
    """A frame as the content of a message."""
    small = len(payload) <= SMALL
    told = {"json": json.dumps(header), **({"payload": payload} if small else {})}
    content = RecordDict({"header": ConfigRecord(told)})
    if not small:
        array = Array(dtype="uint8", shape=(len(payload),), stype="bytes", data=payload)
        content["payload"] = ArrayRecord({"bytes": array})
    return content


def unpack(content: RecordDict) -> tuple[Header, bytes]:
    """The frame in a message.

    Raises:
        ProtocolError: if its header is malformed.
        KeyError, TypeError: if it holds something else.
    """
    told = content.config_records["header"]
    header = parse_header(str(told["json"]))
    if records := content.array_records:
        return header, bytes(records["payload"]["bytes"].data)
    payload = told["payload"]
    if not isinstance(payload, bytes):
        raise TypeError("its payload is no bytes")
    return header, payload
