"""State on disk with a checksum, so that damage is noticed when it is read.

Documents are JSON: ``{"checksum": …, "content": …}``; one that people read too bears the checksum
as its last entry. Bytes are followed by their checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter

from acme_fleet.errors import DamagedError
from acme_fleet.outside import read_regular, reading
from acme_fleet.runs.atomic import replacing

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
"""For ``__pydantic_config__`` of a dataclass that is read from a document."""

_SIZE = hashlib.sha256().digest_size
_CHECKSUM, _CONTENT = "checksum", "content"
_LOG = logging.getLogger(__name__)
Stored = TypeVar("Stored")


def checksum(*parts: bytes | memoryview) -> str:
    """SHA-256 of parts one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def canonical(content: Any) -> bytes:
    """JSON content as bytes that do not change when it is written and read."""
    return json.dumps(content, sort_keys=True, ensure_ascii=True).encode()


def check(path: Path, told: object, found: str) -> None:
    """Compare the checksum that a file holds with that of its content.

    Raises:
        DamagedError: naming the file.
    """
    if told is None:
        raise DamagedError(
            f"cannot read {path}: it has no checksum: an older version of acme-fleet wrote it, or "
            f"it is damaged"
        )
    if told != found:
        raise DamagedError(f"cannot read {path}: it is damaged, its checksum is another")


# --- documents --------------------------------------------------------------------------------


def write_sealed_json(path: Path, content: Any, *, private: bool = False) -> None:
    """Write a document and its checksum atomically, where it is ``private`` for this user alone.

    Raises:
        WriteError: if it cannot be written.
    """
    with replacing(path, private=private) as file:
        document = {_CHECKSUM: checksum(canonical(content)), _CONTENT: content}
        file.write_text(json.dumps(document))


def read_sealed_json(path: Path, kind: type[Stored]) -> Stored:
    """Read what :func:`write_sealed_json` wrote, as this type and no other.

    Raises:
        DamagedError: if it is missing or damaged, or holds something else.
    """
    with reading(f"cannot read {path}", DamagedError):
        document = json.loads(read_regular(path))
        if not isinstance(document, dict) or not document.keys() <= {_CHECKSUM, _CONTENT}:
            document = {}  # an older version's content without a frame
        content = document.get(_CONTENT)
        check(path, document.get(_CHECKSUM), checksum(canonical(content)))
    return typed(path, kind, content)


def typed(path: Path, kind: type[Stored], content: Any) -> Stored:
    """A document's content as this type and no other.

    Raises:
        DamagedError: naming the file, if it is something else: another version wrote it.
    """
    with reading(f"cannot read {path}", DamagedError):
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)


def write_marked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object for people too, its checksum as one entry more, atomically.

    Raises:
        WriteError: if it cannot be written.
    """
    with replacing(path) as file:
        document = {**content, _CHECKSUM: checksum(canonical(content))}
        file.write_text(json.dumps(document, indent=2))


def read_marked_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_marked_json` wrote; an older version's object has no checksum.

    Raises:
        DamagedError: if it is missing or damaged, or no object.
    """
    with reading(f"cannot read {path}", DamagedError):
        content = json.loads(read_regular(path))
        if not isinstance(content, dict):
            raise DamagedError(f"cannot read {path}: it is no JSON object")
        if (told := content.pop(_CHECKSUM, None)) is not None:
            check(path, told, checksum(canonical(content)))
    return content


# --- bytes ------------------------------------------------------------------------------------


def write_sealed(path: Path, content: bytes) -> None:
    """Write bytes and their checksum atomically, for this user alone.

    Raises:
        WriteError: if they cannot be written.
    """
    with replacing(path, private=True) as file:
        file.write_bytes(content + hashlib.sha256(content).digest())


def read_sealed(path: Path) -> bytes:
    """Read what :func:`write_sealed` wrote.

    Raises:
        DamagedError: if it is missing or damaged.
    """
    with reading(f"cannot read {path}", DamagedError):
        stored = read_regular(path)
    content, told = stored[:-_SIZE], stored[-_SIZE:]
    check(path, told.hex(), checksum(content))
    return content


# --- what can be computed anew ----------------------------------------------------------------


def if_sound(path: Path, read: Callable[[Path], Stored]) -> Stored | None:
    """A file's content, or none: there is no file, or it is damaged, which is logged.

    For files that their owner can compute anew.
    """
    try:
        with reading(f"cannot read {path}", DamagedError):
            if not path.exists():
                return None
        return read(path)
    except DamagedError as error:
        _LOG.warning("%s; it is computed anew", error)
        return None
