"""A frame in a Flower message: the header as text, the payload as one array of bytes."""

from __future__ import annotations

import json

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from acme_fleet.network.flower.frames import Header, parse_header


def pack(header: Header, payload: bytes) -> RecordDict:
    """A frame as the content of a message."""
    content = RecordDict({"header": ConfigRecord({"json": json.dumps(header)})})
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype="bytes", data=payload)
        content["payload"] = ArrayRecord({"bytes": array})  # arrays travel in pieces of 5 MiB
    return content


def unpack(content: RecordDict) -> tuple[Header, bytes]:
    """The frame in a message.

    Raises:
        ProtocolError: if its header is malformed.
        KeyError, TypeError: if it holds something else.
    """
    header = parse_header(str(content.config_records["header"]["json"]))
    records = content.array_records
    return header, bytes(records["payload"]["bytes"].data) if records else b""
