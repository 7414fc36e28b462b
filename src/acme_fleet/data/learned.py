"""Data that a reference was pre-trained on by ``acme pretrain``, told again by their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.checkpoint_files import PRETRAINING, read_object
from acme_fleet.outside import one_line

DATA_SUMS = "data_sha256"
"""Key of a pre-training's record: digests of the files and folders that it read."""


def digests(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file; of a folder that of the names and bytes of all files below it."""
    return sorted({_digest(path) for path in paths})


def _digest(path: Path) -> str:
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        whole.update(f"{file.relative_to(path).as_posix()}\n{_digest(file)}\n".encode())
    return whole.hexdigest()


def learned_before(fleet: Fleet) -> list[str]:
    """The settings of a fleet whose data its reference was pre-trained on, with their paths.

    A checkpoint without the record of ``acme pretrain`` tells nothing of what it has learned, and
    data that lie on other hosts cannot be compared here.
    """
    checkpoint = fleet.reference.checkpoint
    record = Path(checkpoint or "") / PRETRAINING
    if checkpoint is None or not record.is_file():
        return []
    known = read_object(record, f"cannot read {record}").get(DATA_SUMS)
    if not isinstance(known, list):
        return []
    return [
        f"{setting} ({one_line(str(path), 200)})"
        for setting, path in _data_of(fleet)
        if path.exists() and _digest(path) in known
    ]


def _data_of(fleet: Fleet) -> Iterator[tuple[str, Path]]:
    data = fleet.data
    for setting, value in (
        *(("data.train", data.train), ("data.test", data.test), ("data.public", data.public)),
        *((f"data of {each.name}", each.data) for each in (*fleet.clusters, *fleet.devices)),
    ):
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                yield setting, path
