"""From a data set's files to samples that are not decoded yet."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import numpy as np

from acme_fleet.data.raw import Columns, RawSamples, as_objects, class_list, coded, joined, owners
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed, one_line, optional, reading

_log = logging.getLogger(__name__)
_DARK = 32


def read_digits() -> RawSamples:
    """scikit-learn's 1,797 handwritten digits, 8 × 8, their 17 grey levels spread over 0..255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.rint(np.asarray(images).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    stored = np.full(len(grey), grey[0].nbytes, dtype=np.int64)
    return RawSamples(grey, np.asarray(labels, dtype=np.int64), names, stored, None, "digits")


# --- arrays -----------------------------------------------------------------------------------


def read_arrays(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read .npz files with ``images``, ``labels`` and, optionally, ``label_names``.

    Raises:
        FleetError: naming the file that cannot be read or the array that it lacks.
    """
    return joined([_read_npz(path, columns, where) for path in paths], where)


def _read_npz(path: Path, columns: Columns, where: str) -> RawSamples:
    place = f"{where}: {path}"
    columns = replace(columns, item="images", label="labels")
    with (
        reading(f"{place} is not a readable .npz file"),
        path.open("rb") as handle,
        ZipFile(handle),  # NumPy would take anything else for a pickle
        np.load(handle, allow_pickle=False) as file,
    ):
        if len(set(file.files)) < len(file.files):
            raise FleetError(f"{place}: an array stands twice in it: {listed(file.files, 20)}")
        required = columns.within(file.files)
        require_columns(required, list(file.files), place)
        wanted = [name for name in (*required, "label_names") if name in file.files]
        arrays = {name: file[name] for name in wanted}
    images, labels = arrays["images"], arrays.get("labels")
    shape = None if labels is None else labels.shape
    if images.ndim not in (3, 4) or (shape is not None and len(shape) != 1):
        raise FleetError(
            f"{place}: images of shape {images.shape} and labels of shape {shape}; "
            f"needed are (samples, height, width[, channels]) and (samples,)"
        )
    stored = np.full(len(images), images[:1].nbytes, dtype=np.int64)
    if labels is None:
        return RawSamples(_channels_last(images, place), None, None, stored, None, place)
    for name in ("label_names", columns.group):
        if name in arrays and arrays[name].ndim != 1:
            raise FleetError(f"{place}: {name} of shape {arrays[name].shape} is no list")
    names = arrays.get("label_names")
    codes, known, text = coded(
        labels.tolist(),
        None if names is None else class_list(names.tolist(), place),
        lambda number: f"{place}, labels[{number}]",
    )
    groups = None
    if columns.group:
        told = arrays[columns.group].tolist()
        groups = owners(told, lambda number: f"{place}, {columns.group}[{number}]")
    images = _channels_last(images, place)
    if images.size and images.dtype.kind in "iu" and 0 < images.max() <= _DARK:
        _log.warning(
            f"{place}: the largest value of all images is {images.max()}, nearly black where 255 "
            f"is white; spread their values over 0 to 255 if that is not meant"
        )
    return RawSamples(images, codes, known, stored, groups, place, text)


def _channels_last(images: np.ndarray, where: str) -> np.ndarray:
    """Images of shape ``(samples, height, width[, channels])``; channels may also come first.

    Raises:
        FleetError: if neither or both of the axes can be the channels: one of 1 or 3.
    """
    if images.ndim == 3:
        return images
    first, last = (images.shape[axis] in (1, 3) for axis in (1, 3))
    if first and last:
        raise FleetError(
            f"{where}: images of shape {images.shape} may have their channels first or last; "
            f"sides of 1 or 3 pixels cannot be told from channels"
        )
    if not first and not last:
        raise FleetError(
            f"{where}: images of shape {images.shape} have no axis of 1 or 3 channels; "
            f"convert them to RGB, shape (samples, height, width, 3)"
        )
    return images.transpose(0, 2, 3, 1) if first else images


# --- tables -----------------------------------------------------------------------------------


def read_parquet(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read parquet files with a column of encoded images and one of labels.

    Class names come from the schema's metadata: Hugging Face's features, or ``<label>_names``.

    Raises:
        FleetError: naming the file that cannot be read or the column that it lacks.
    """
    optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    parts = []
    for path in paths:
        place = f"{where}: {path}"
        with reading(place):
            schema = parquet.read_schema(path)
            wanted = columns.within(schema.names)
            require_columns(wanted, schema.names, place)
            table = parquet.read_table(path, columns=wanted)
        names = None
        if columns.label in wanted:
            names = _names_in(schema.metadata or {}, columns.label, place)
        parts.append(_from_table(table, columns, names, place))
    return joined(parts, where)


def read_hub(name: str, split: str, columns: Columns, where: str) -> RawSamples:
    """Read a split of a data set of the Hugging Face hub, or of a folder that `datasets` reads.

    Raises:
        FleetError: if `datasets` cannot load it, with its reason.
    """
    datasets = optional_module("datasets")
    place = f"{where}: {name}"
    with reading(f"{where}: cannot load split {split!r} of {name!r}"):
        dataset = datasets.load_dataset(name, split=split)
        require_columns(columns.wanted, dataset.column_names, place)
        dataset = dataset.select_columns(columns.wanted)
        if isinstance(dataset.features[columns.item], datasets.Image):
            # else each image would be decoded, those of classes that are not kept too
            dataset = dataset.cast_column(columns.item, datasets.Image(decode=False))
        label = dataset.features[columns.label]
        names = label.names if isinstance(label, datasets.ClassLabel) else None
        table = dataset.with_format("arrow")[:]
    names = None if names is None else class_list(names, place)
    return joined([_from_table(table, columns, names, place)], where)


def _from_table(table: Any, columns: Columns, names: list[str] | None, where: str) -> RawSamples:
    with reading(where):
        cells = {name: table[name].to_pylist() for name in columns.within(table.column_names)}

    def place(number: int) -> str:
        return f"{where}, row {number + 1}"

    images = [
        _encoded(cell, columns.item, place(number))
        for number, cell in enumerate(cells[columns.item])
    ]
    with reading(where):
        sizes = [x.stat().st_size if isinstance(x, Path) else len(x) for x in images]
    stored = np.array(sizes, dtype=np.int64)
    if columns.label not in cells:
        return RawSamples(as_objects(images), None, None, stored, None, where)
    codes, known, text = coded(cells[columns.label], names, place)
    groups = owners(cells[columns.group], place) if columns.group else None
    return RawSamples(as_objects(images), codes, known, stored, groups, where, text)


def _encoded(cell: Any, column: str, where: str) -> bytes | Path:
    """The image file of a cell: Hugging Face stores ``{bytes, path}``."""
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
        cell = Path(path) if content is None and isinstance(path, str) else content
    if isinstance(cell, Path) and not cell.is_file():
        raise FleetError(f"{where}: column {column!r} names {cell}, which is not there")
    if not isinstance(cell, bytes | Path):
        raise FleetError(
            f"{where}: column {column!r} holds {type(cell).__name__}, not image files; "
            f"`image_column` names the column of encoded images"
        )
    return cell


def _names_in(metadata: dict[bytes, bytes], label: str, where: str) -> list[str] | None:
    """The class names in a parquet file's metadata; None if there are none.

    Raises:
        FleetError: if they cannot be read, or are told twice and differ.
    """
    lists = []
    with reading(f"{where}: its metadata `huggingface`"):
        about = json.loads(metadata.get(b"huggingface", b"{}"))
    for key in ("info", "features", label):
        if not isinstance(about, dict):
            raise FleetError(
                f"{where}: its metadata `huggingface` has a {type(about).__name__} where "
                f"{key!r} is looked up"
            )
        about = about.get(key) or {}
    if isinstance(about, dict) and about.get("names"):
        lists.append(class_list(about["names"], where))
    with reading(f"{where}: its metadata `{label}_names`"):
        text = metadata.get(f"{label}_names".encode(), b"").decode()
    if text:
        # Names of cars contain commas; where a list uses bars, commas are part of a name.
        lists.append(class_list(text.split("|" if "|" in text else ","), where))
    if len(lists) == 2 and lists[0] != lists[1]:
        raise FleetError(f"{where}: its metadata `huggingface` and `{label}_names` disagree")
    return lists[0] if lists else None


def optional_module(name: str) -> ModuleType:
    """Import a module that comes with an extra.

    Raises:
        FleetError: with the command that installs it.
    """
    advice = f'this data set needs {name.split(".")[0]}: pip install "acme-fleet[data]"'
    return optional(name, advice)


def require_columns(wanted: list[str], present: list[str], where: str) -> None:
    """Refuse data that lack a column.

    Raises:
        FleetError: naming what is missing and what there is.
    """
    missing = [name for name in wanted if name not in present]
    if missing:
        shown = ", ".join(one_line(str(name), 60) for name in present[:20])
        raise FleetError(f"{where} lacks {', '.join(missing)}; it has {shown}")
