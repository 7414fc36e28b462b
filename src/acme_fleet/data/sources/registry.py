"""Readers of whole data sets, by the name of their source in a fleet file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from acme_fleet.config.data import Data
from acme_fleet.data.language import read_language
from acme_fleet.data.paths import check_apart, check_paths
from acme_fleet.data.raw import Columns, RawSamples
from acme_fleet.data.sources.archives import cars_annotations, read_cars
from acme_fleet.data.sources.files import read_arrays, read_digits, read_hub, read_parquet
from acme_fleet.data.sources.folder import read_folders
from acme_fleet.data.sources.moved_digits import read_moved_digits
from acme_fleet.data.text import read_json_lines
from acme_fleet.errors import FleetError

Part = Literal["train", "test"]
Reader = Callable[[Data, Part, Columns], RawSamples | None]
"""Reads one part of a data set, not decoded; none where the settings name no such part."""


def _digits(data: Data, part: Part, columns: Columns) -> RawSamples | None:
    if columns.group:
        raise FleetError(f"data.partition: the digits have no column {columns.group!r}")
    return read_digits() if part == "train" else None


def _moved_digits(data: Data, part: Part, columns: Columns) -> RawSamples | None:
    if columns.group:
        raise FleetError(f"data.partition: the digits have no column {columns.group!r}")
    return read_moved_digits(test=part == "test")


def _hub(data: Data, part: Part, columns: Columns) -> RawSamples | None:
    if part == "train":
        return read_hub(str(data.train), "train", columns, "data.train")
    if data.test is None:
        return None
    return read_hub(str(data.train), str(data.test), columns, "data.test")


def _files(
    read: Callable[[Sequence[Path], Columns, str], RawSamples], *, folders: bool = False
) -> Reader:
    def read_part(data: Data, part: Part, columns: Columns) -> RawSamples | None:
        paths, where = data.train if part == "train" else data.test, f"data.{part}"
        if paths is None:
            return None
        listed = paths if isinstance(paths, list) else [Path(paths)]
        check_paths(listed, where, folders=folders)
        if part == "test":
            trained = data.train if isinstance(data.train, list) else [Path(str(data.train))]
            check_apart(trained, listed)
        return read(listed, columns, where)

    return read_part


def _image_folders(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    if columns.group:
        raise FleetError(
            f"data.partition: folders of images have no column {columns.group!r}; "
            f"use `source: parquet`, or give each device its folder in `data`"
        )
    return read_cars(paths, where) if cars_annotations(paths[0]) else read_folders(paths, where)


SOURCES: dict[str, Reader] = {
    "digits": _digits,
    "moved_digits": _moved_digits,
    "huggingface": _hub,
    "arrays": _files(read_arrays),
    "text": _files(read_json_lines),
    "language": _files(read_language),
    "parquet": _files(read_parquet),
    "images": _files(_image_folders, folders=True),
}
"""Readers by ``data.source``. A new source is a reader and an entry here."""
