"""A folder that one process holds at a time, by a lock of the operating system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acme_fleet.errors import RunError
from acme_fleet.runs.atomic import make_folder, writing
from acme_fleet_runtime.locks import acquire, holder, release

__all__ = ["LOCK", "held", "held_file", "holder"]

LOCK = ".acme-lock"


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
    with writing(folder):
        make_folder(folder, private=private)
    with _locked(folder / LOCK, folder):
        yield


@contextmanager
def held_file(path: Path) -> Iterator[None]:
    """Hold a file that a process writes on and on; folders above it are made.

    Raises:
        RunError: as :func:`held`.
        WriteError: if there can be no such file.
    """
    with writing(path):
        make_folder(path.parent)
    with _locked(path.with_name(f".{path.name}{LOCK}"), path):
        yield


@contextmanager
def _locked(lock: Path, place: Path) -> Iterator[None]:
    with writing(place):
        descriptor = acquire(lock, RunError)
    try:
        yield
    finally:
        release(lock, descriptor)
