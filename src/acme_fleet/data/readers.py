"""From a data set's files to labelled samples that are not decoded yet."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np

from acme_fleet.errors import FleetError

_IMAGE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)


@dataclass(frozen=True)
class Columns:
    """Which columns to read: the image's or text's, the label's, and the one that says whose."""

    item: str
    label: str
    group: str | None = None

    @property
    def wanted(self) -> list[str]:
        """All names, once each."""
        return list(dict.fromkeys(x for x in (self.item, self.label, self.group) if x))


@dataclass(frozen=True)
class RawSamples:
    """Labelled images or texts as they are stored.

    Attributes:
        items: images as an array of shape ``(samples, height, width)`` or ``(samples, height,
            width, channels)``; or, with dtype object, each image file's content (bytes) or path,
            or each text.
        labels: integers from 0, shape ``(samples,)``.
        names: the classes' names in the order of the labels, where the data set tells them.
        stored_bytes: size of each sample as stored, shape ``(samples,)``, int64.
        groups: whose each sample is, shape ``(samples,)``, where a column says so.
        where: the setting that they come from, for error messages.
    """

    items: np.ndarray
    labels: np.ndarray
    names: list[str] | None
    stored_bytes: np.ndarray
    groups: np.ndarray | None
    where: str

    def __post_init__(self) -> None:
        if self.items.ndim not in (1, 3, 4) or len(self.items) != len(self.labels):
            raise FleetError(
                f"{self.where}: images of shape {self.items.shape} and labels of shape "
                f"{self.labels.shape}; (samples, height, width[, channels]) and (samples,) belong "
                f"together"
            )
        if len(self.labels) == 0:
            raise FleetError(f"{self.where}: there is no sample")
        if self.groups is not None and len(self.groups) != len(self.labels):
            raise FleetError(f"{self.where}: {len(self.groups)} groups, {len(self.labels)} labels")
        if self.labels.min() < 0:
            raise FleetError(
                f"{self.where}: label {self.labels.min()} is negative, as in an unlabelled split; "
                f"labels count from 0"
            )
        if self.names is not None and self.labels.max() >= len(self.names):
            raise FleetError(
                f"{self.where}: label {self.labels.max()} has no name; "
                f"there are {len(self.names)} names"
            )

    def __getitem__(self, index: np.ndarray) -> RawSamples:
        """The samples at ``index``, int64 of shape ``(chosen,)``."""
        return RawSamples(
            self.items[index],
            self.labels[index],
            self.names,
            self.stored_bytes[index],
            None if self.groups is None else self.groups[index],
            self.where,
        )


def read_digits() -> RawSamples:
    """scikit-learn's 1,797 handwritten digits, 8 × 8, their 17 grey levels spread over 0..255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.rint(np.asarray(images).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    return _arrays(grey, np.asarray(labels), names, None, "digits")


def read_arrays(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read .npz files with ``images``, ``labels`` and, optionally, ``label_names``.

    Raises:
        FleetError: naming the file that cannot be read or the array that it lacks.
    """
    wanted = [name for name in ("images", "labels", columns.group) if name]
    parts: dict[str, list[np.ndarray]] = {}
    for path in paths:
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                require_columns(wanted, list(file.files), f"{where}: {path}")
                for name in file.files:
                    parts.setdefault(name, []).append(file[name])
        except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
            # TypeError: a .npy file, which np.load gives back as a bare array
            raise FleetError(f"{where}: {path} is not a readable .npz file: {error}") from error
    names = {tuple(map(str, part)) for part in parts.get("label_names", [])}
    if len(names) > 1:
        raise FleetError(f"{where}: the files differ in label_names")
    try:
        images, labels = np.concatenate(parts["images"]), np.concatenate(parts["labels"])
    except ValueError as error:
        raise FleetError(f"{where}: the files' images differ in shape: {error}") from error
    groups = np.concatenate(parts[columns.group]) if columns.group else None
    return _arrays(images, labels, list(names.pop()) if names else None, groups, where)


def read_folders(paths: Sequence[Path], where: str) -> RawSamples:
    """Read folders whose sub-folders are the classes and hold image files.

    Raises:
        FleetError: if there is no class folder, or one without images.
    """
    files: list[Path] = []
    classes: list[str] = []
    for path in paths:
        folders = sorted(x for x in path.iterdir() if x.is_dir() and not x.name.startswith("."))
        if not folders:
            raise FleetError(f"{where}: {path} holds no class folders")
        for folder in folders:
            found = sorted(x for x in folder.iterdir() if x.suffix.lower() in _IMAGE_SUFFIXES)
            if not found:
                raise FleetError(f"{where}: the class folder {folder} holds no image files")
            files += found
            classes += [folder.name] * len(found)
    labels, names = coded(np.array(classes), where)
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    return RawSamples(as_objects(files), labels, names, sizes, None, where)


def read_parquet(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read parquet files with a column of encoded images and one of labels.

    Class names come from the schema's metadata: Hugging Face's features, or ``<label>_names``.

    Raises:
        FleetError: naming the file that cannot be read or the column that it lacks.
    """
    pyarrow = optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    tables, metadata = [], {}
    try:
        for path in paths:
            schema = parquet.read_schema(path)
            require_columns(columns.wanted, schema.names, f"{where}: {path}")
            metadata = metadata or schema.metadata or {}
            tables.append(parquet.read_table(path, columns=columns.wanted))
        table = pyarrow.concat_tables(tables)
    except (OSError, pyarrow.ArrowException) as error:
        raise FleetError(f"{where}: {', '.join(map(str, paths))}: {error}") from error
    return _from_table(table, columns, _names_in(metadata, columns.label), where)


def read_hub(name: str, split: str, columns: Columns, where: str) -> RawSamples:
    """Read a split of a data set of the Hugging Face hub, or of a folder that `datasets` reads.

    Raises:
        FleetError: if `datasets` cannot load it, with its reason.
    """
    datasets = optional_module("datasets")
    try:
        dataset = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise FleetError(f"{where}: cannot load split {split!r} of {name!r}: {error}") from error
    require_columns(columns.wanted, dataset.column_names, f"{where}: {name}")
    dataset = dataset.select_columns(columns.wanted)
    if isinstance(dataset.features[columns.item], datasets.Image):
        # else each image would be decoded, those of classes that are not kept too
        dataset = dataset.cast_column(columns.item, datasets.Image(decode=False))
    names = getattr(dataset.features[columns.label], "names", None)
    table = dataset.with_format("arrow")[:]
    return _from_table(table, columns, names, where)


def optional_module(name: str) -> ModuleType:
    """Import a module that comes with an extra.

    Raises:
        FleetError: with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FleetError(
            f'this data set needs {name.split(".")[0]}: pip install "acme-fleet[data]"'
        ) from error


def _arrays(
    images: np.ndarray,
    labels: np.ndarray,
    names: list[str] | None,
    groups: np.ndarray | None,
    where: str,
) -> RawSamples:
    if images.ndim not in (3, 4) or labels.ndim != 1:
        raise FleetError(
            f"{where}: images of shape {images.shape} and labels of shape {labels.shape}; "
            f"needed are (samples, height, width[, channels]) and (samples,)"
        )
    labels, own_names = coded(labels, where)
    size = images[:1].nbytes
    stored = np.full(len(images), size, dtype=np.int64)
    return RawSamples(images, labels, own_names or names, stored, groups, where)


def _from_table(table: Any, columns: Columns, names: list[str] | None, where: str) -> RawSamples:
    for column in columns.wanted[1:]:
        if table[column].null_count:
            raise FleetError(f"{where}: column {column!r} has empty cells")
    images = [_encoded(cell, columns.item, where) for cell in table[columns.item].to_pylist()]
    sizes = [x.stat().st_size if isinstance(x, Path) else len(x) for x in images]
    labels, own_names = coded(table[columns.label].to_numpy(), where)
    groups = np.array(table[columns.group].to_pylist()) if columns.group else None
    stored = np.array(sizes, dtype=np.int64)
    return RawSamples(as_objects(images), labels, own_names or names, stored, groups, where)


def _encoded(cell: Any, column: str, where: str) -> bytes | Path:
    """What a cell of an image column holds: Hugging Face stores ``{bytes, path}``."""
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
        cell = content if content is not None else path and Path(path)
    if isinstance(cell, Path) and not cell.is_file():
        raise FleetError(f"{where}: column {column!r} names {cell}, which is not there")
    if not isinstance(cell, bytes | Path):
        raise FleetError(
            f"{where}: column {column!r} holds {type(cell).__name__}, not image files; "
            f"`image_column` names the column of encoded images"
        )
    return cell


def coded(labels: np.ndarray, where: str) -> tuple[np.ndarray, list[str] | None]:
    """Labels as integers; labels that are text are numbered in sorted order and name themselves.

    Raises:
        FleetError: if they are neither.
    """
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64), None
    if labels.dtype.kind in "UTO" and all(isinstance(label, str) for label in labels):
        names, codes = np.unique(labels.astype(str), return_inverse=True)
        return codes, names.tolist()
    raise FleetError(f"{where}: labels of type {labels.dtype}; integers or text are needed")


def _names_in(metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names")
        if names:
            return names
    text = metadata.get(f"{label}_names".encode(), b"").decode()
    # Names of cars contain commas; where a list uses bars, commas are part of a name.
    return text.split("|" if "|" in text else ",") if text else None


def as_objects(items: Sequence[Any]) -> np.ndarray:
    """An array of dtype object and shape ``(items,)``, whatever the items are."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def require_columns(wanted: list[str], present: list[str], where: str) -> None:
    """Refuse data that lack a column.

    Raises:
        FleetError: naming what is missing and what there is.
    """
    missing = [name for name in wanted if name not in present]
    if missing:
        raise FleetError(f"{where} lacks {', '.join(missing)}; it has {', '.join(present)}")
