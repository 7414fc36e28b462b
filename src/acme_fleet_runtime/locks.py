"""A file that one process holds at a time, by a lock of the operating system."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from acme_fleet_runtime.errors import AcmeError

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None

_HELD = (errno.EAGAIN, errno.EACCES)
_LOG = logging.getLogger(__name__)


def acquire(path: Path, kind: type[AcmeError]) -> int | None:
    """A descriptor of the locked file, which then holds this process's number.

    Returns:
        None where the file system has no locks, which is logged; nothing is held then.

    Raises:
        AcmeError: of this ``kind``, if another process, or another call in this one, holds it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(path, descriptor, kind):
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


def release(path: Path, descriptor: int | None) -> None:
    """Give back what :func:`acquire` returned, and remove the file."""
    if descriptor is not None:
        try:
            path.unlink(missing_ok=True)  # before the lock ends: nobody can hold it in between
        finally:
            os.close(descriptor)


def holder(path: Path) -> str | None:
    """The number of another process that holds a file; none where no other is known to."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        process = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        known = error.errno in _HELD and process.isdigit() and process != str(os.getpid())
        return process if known else None
    finally:
        os.close(descriptor)
    return None


def _lock(path: Path, descriptor: int, kind: type[AcmeError]) -> bool:
    """Lock the file; whether its system has locks.

    Raises:
        AcmeError: of this ``kind``, if somebody else holds it.
    """
    trouble = "this system has none"
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _HELD:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
                raise kind(
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
