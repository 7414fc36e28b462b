"""Atomic file writes, on Linux also over a power cut: a reader sees the old file or the new one."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acme_fleet.errors import WriteError
from acme_fleet.outside import reason

# Ours, and those that the library safetensors writes before it renames them.
_PARTIAL = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}\.partial|\.tmp[A-Za-z0-9]{6}")


@contextmanager
def replacing(path: Path, *, private: bool = False, durable: bool = True) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` once it is on the disk.

    Readers see the old file or the new one; folders above it are made. If writing fails, the old
    one stays, and nothing else. The new file's mode is what the umask leaves, whatever the old
    one's mode was and whoever writes into the file.

    Args:
        path: the file.
        private: only this user can read the file, and a folder that is made for it.
        durable: wait for the disk; not needed for what is written again every second.

    Raises:
        WriteError: naming ``path``, if the system does not let it be written.
    """
    partial = _beside(path)
    with writing(path):
        make_folder(path.parent, private=private)
        try:
            descriptor = os.open(
                partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666
            )
            mode = os.fstat(descriptor).st_mode & 0o777
            os.close(descriptor)
            yield partial
            with partial.open("r+b") as written:
                if os.fstat(written.fileno()).st_mode & 0o777 != mode:
                    os.fchmod(written.fileno(), mode)  # a library has put its own file there
                if durable:
                    os.fsync(written.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Refusals of the system while a file is written become one error that names the file.

    Raises:
        WriteError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {reason(error)}") from error


def check_writable(path: Path) -> None:
    """Refuse a place before the long work whose result it is for; folders above it are made.

    Raises:
        WriteError: naming ``path``, if no file can be written there.
    """
    partial = _beside(path)
    with writing(path):
        make_folder(path.parent)
        partial.touch(exist_ok=False)
        partial.unlink()


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        WriteError: if the system does not let it be removed.
    """
    with writing(path):
        path.unlink(missing_ok=True)


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder and those above it, unless they are there; only the last one is private."""
    if path.is_dir():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", path) from error


def _beside(path: Path) -> Path:
    """A new name for a file that is to take the place of ``path``; see :data:`_PARTIAL`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def is_partial(path: Path) -> bool:
    """True for a file that a writer may have left when it was killed."""
    return _PARTIAL.fullmatch(path.name) is not None and not path.is_dir()


def remove_partial(folder: Path) -> None:
    """Remove what writers that were killed have left; nobody may be writing below ``folder``."""
    for path in folder.rglob(".*"):
        if is_partial(path):
            path.unlink(missing_ok=True)
