"""The border to data from outside: library exceptions as one error, foreign text made safe to show.

Libraries that read files raise many types of exception, and new versions raise others. Every
reader of outside data calls its library inside :func:`reading` and lists none of them.
"""

from __future__ import annotations

import errno
import importlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from acme_fleet_runtime.errors import AcmeError, FleetError

_SYSTEM = {
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EACCES: "permission denied",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links form a loop",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit is reached",
    errno.EINVAL: "it is no regular file",
    errno.EROFS: "the file system is read-only",
}


@contextmanager
def reading(place: object, kind: type[AcmeError] = FleetError) -> Iterator[None]:
    """Turn whatever a library raises for outside data into one error that names the place.

    Wrap calls of libraries only: an exception of our own code would be taken for a bad file. Our
    own errors pass unchanged; so does KeyboardInterrupt.

    Args:
        place: what is read, at the beginning of the message.
        kind: the error to raise.

    Raises:
        AcmeError: of this ``kind``.
    """
    try:
        yield
    except AcmeError:
        raise
    except BaseException as error:
        # A library in Rust that has panicked: its type cannot be imported, and is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{place}: {reason(error)}") from error


def optional(module: str, advice: str, kind: type[AcmeError] = FleetError) -> ModuleType:
    """A module that comes with an extra, imported when it is needed.

    Raises:
        AcmeError: of this ``kind``, with the ``advice``, if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise kind(advice) from error


def regular(path: Path) -> Path:
    """The same path, of a regular file or folder; a pipe, socket or device could block for ever.

    Raises:
        OSError: if there is nothing, or it is something else.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "no regular file")
    return path


def resolved(path: Path) -> Path:
    """An absolute path without links; one whose links form a loop stays as it is.

    ``Path.resolve`` raises a RuntimeError for such a loop in Python 3.11 and 3.12.

    Raises:
        ValueError: if it contains the character NUL.
    """
    return Path(os.path.realpath(path))


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as :func:`regular`.
        ValueError: if it has more than ``most_bytes``.
    """
    size = regular(path).stat().st_size
    if most_bytes is not None and size > most_bytes:
        raise ValueError(f"{size:,} bytes are too many for such a file")
    return path.read_bytes()


def reason(error: BaseException) -> str:
    """An exception in one line of at most 300 characters, without control characters."""
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        return _SYSTEM[error.errno]
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    told = one_line(str(error), 300)
    name = type(error).__name__
    # The text of a lookup error is the bare key.
    return told if told and not isinstance(error, LookupError) else f"{name} {told}".strip()


def one_line(text: str, limit: int = 200) -> str:
    """Foreign text as one printable line of at most ``limit`` characters.

    Line breaks and runs of spaces become one space, other characters that are not printable
    (control characters, halves of surrogate pairs, direction marks) become ``?``, and what is too
    long ends in ``…``.
    """
    beginning = text[: 4 * limit]
    words = " ".join(beginning.split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in words)
    if len(shown) > limit or len(text) > len(beginning):
        shown = shown[: limit - 1] + "…"
    return shown


def listed(names: Sequence[str], limit: int = 3) -> str:
    """Up to ``limit`` names of at most 100 characters each, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(one_line(name, 100) for name in names[:limit]) + more
