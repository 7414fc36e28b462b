"""JSON Lines files: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acme_fleet.errors import FleetError
from acme_fleet.outside import read_regular, reading
from acme_fleet_runtime.strict import unique_keys

_JSON_SPACE = " \t\r"


def json_objects(path: Path, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its place; empty lines are left out.

    Args:
        path: the file. where: the setting that names it, for errors.

    Raises:
        FleetError: naming the file and line that cannot be read.
    """
    with reading(f"{where}: cannot read {path}"):
        # Only these end a line; U+2028 and U+0085 may stand in a text.
        lines = read_regular(path).decode("utf-8-sig").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip(_JSON_SPACE):
            continue
        place = f"{where}: {path}, line {number}"
        with reading(f"{place} is no JSON"):
            row = json.loads(line, object_pairs_hook=unique_keys)
        if not isinstance(row, dict):
            raise FleetError(f"{place} is no JSON object")
        yield place, row


def text_of(row: dict[str, Any], key: str, place: str) -> str:
    """The text of an object that must not be empty.

    Raises:
        FleetError: naming the place and key, if it is no text.
    """
    text = row[key]
    if not isinstance(text, str):
        raise FleetError(f"{place}: {key!r} is {type(text).__name__}, no text")
    with reading(f"{place}: {key!r} is no Unicode text"):
        text.encode()
    if not text.strip():
        raise FleetError(f"{place}: {key!r} is empty")
    return text
