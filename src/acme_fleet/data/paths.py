"""Paths of data, looked at before anything is read."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from acme_fleet.errors import FleetError
from acme_fleet.outside import reading


def check_paths(paths: Sequence[Path], where: str, *, folders: bool | None = None) -> None:
    """Each path is there once, and is a folder or a regular file; None takes either."""
    if not paths:
        raise FleetError(f"{where}: the list of paths is empty")
    for number, path in enumerate(paths):
        with reading(f"{where}: {path}"):
            mode = path.stat().st_mode
            again = [other for other in paths[:number] if path.samefile(other)]
        if again:
            raise FleetError(f"{where}: {path} is named twice")
        is_folder, is_file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
        if folders and not is_folder:
            raise FleetError(f"{where}: {path} is no folder; `source: images` needs one")
        if not is_file and (folders is False or not is_folder):
            raise FleetError(f"{where}: {path} is no regular file")


def check_apart(train: Sequence[Path], test: Sequence[Path]) -> None:
    """Refuse test samples that are trained on; all paths are there.

    Raises:
        FleetError: naming a path that is in both lists.
    """
    for path in test:
        with reading(f"data.test: {path}"):
            same = any(path.samefile(other) for other in train)
        if same:
            raise FleetError(
                f"data.test: {path} is in data.train too; what a model was trained on cannot test "
                f"it: name other samples, or leave data.test out for a share of data.train"
            )
