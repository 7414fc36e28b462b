"""A list of the files that a folder was given, so that one that goes missing is noticed.

For state that is not made anew alike: without it, a later step would go on from an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from acme_fleet.errors import DamagedError
from acme_fleet.outside import reading
from acme_fleet.runs.atomic import remove, writing

LEDGER = "written"


def note(folder: Path, names: Iterable[str]) -> None:
    """Remember that these files of a folder were written.

    Raises:
        WriteError: if the list cannot be written.
    """
    new = [name for name in dict.fromkeys(names) if name not in _noted(folder)]
    if not new:
        return
    path = folder / LEDGER
    with writing(path):
        path.touch(mode=folder.stat().st_mode & 0o666)  # as private as its folder
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{name}\n" for name in new))  # half a line spoils no other


def require(path: Path) -> bool:
    """True if a file is there, and false if it never was.

    Raises:
        DamagedError: if it was written once and is not there any more.
    """
    with reading(f"cannot read {path}", DamagedError):
        if path.exists():
            return True
    if path.name in _noted(path.parent):
        raise DamagedError(f"cannot read {path}: it was written once, and is not there any more")
    return False


def forget(folder: Path) -> None:
    """Begin a new list."""
    remove(folder / LEDGER)


def _noted(folder: Path) -> set[str]:
    path = folder / LEDGER
    with reading(f"cannot read {path}", DamagedError):
        return set(path.read_text(encoding="utf-8").split("\n")) if path.exists() else set()
