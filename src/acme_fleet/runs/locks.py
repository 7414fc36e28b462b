"""A folder that one process holds at a time, by a lock of the operating system."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acme_fleet.errors import RunError
from acme_fleet.runs.atomic import make_folder, writing

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None

LOCK = ".acme-lock"
_HELD = (errno.EAGAIN, errno.EACCES)
_LOG = logging.getLogger(__name__)


@contextmanager
def held(folder: Path, *, private: bool = False) -> Iterator[None]:
    """Hold a folder, which is made if need be.

    The lock ends with the block or with the process, whatever ends it. The file that bears it
    holds the process's number, and is removed with it. Where the file system has no locks, that
    is said, and nothing is held.

    Raises:
        RunError: if another process, or another call in this one, holds the folder.
        WriteError: if the folder cannot be made.
    """
    path = folder / LOCK
    with writing(folder):
        make_folder(folder, private=private)
        descriptor = _locked(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # before the lock ends: nobody can hold it in between
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor of the locked file; none where there are no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(path, descriptor):
                path.unlink(missing_ok=True)
                os.close(descriptor)
                return None
            # Whoever held it may have removed the file while this process was opening it.
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> bool:
    """Lock the file; whether its system has locks.

    Raises:
        RunError: if somebody else holds it.
    """
    trouble = "this system has none"
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _HELD:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
                raise RunError(
                    f"{path.parent} is in use by process {holder}; wait until it ends, or choose "
                    f"another folder"
                ) from error
            trouble = os.strerror(error.errno or 0)
    _LOG.warning(
        "%s cannot be locked (%s): do not let two processes work there", path.parent, trouble
    )
    return False


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
