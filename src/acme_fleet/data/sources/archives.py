"""Data sets in the layout in which their authors publish them, and what lies at a path."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.io import loadmat

from acme_fleet.config.data import Data
from acme_fleet.data.raw import RawSamples, as_objects, class_list
from acme_fleet.data.sources.files import optional_module
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed, one_line, reading

_log = logging.getLogger(__name__)

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "fine_label", "labels")


# --- Stanford Cars (Krause et al., 2013) ------------------------------------------------------


def cars_annotations(images: Path) -> Path | None:
    """The file that names the cars of a folder of Stanford Cars, if there is one.

    For ``ROOT/cars_train`` it is ``ROOT/devkit/cars_train_annos.mat``; of the test images the
    archive has a second file with the classes, beside the folder or in ``devkit``.
    """
    name, root = images.name, images.parent
    with_labels = f"{name}_annos_withlabels.mat"
    places = (root / with_labels, root / "devkit" / with_labels)
    found = [*places, root / "devkit" / f"{name}_annos.mat"]
    return next((path for path in found if path.is_file()), None)


def read_cars(paths: Sequence[Path], where: str) -> RawSamples:
    """Read folders of Stanford Cars in the archive's own layout, images not decoded.

    Raises:
        FleetError: naming the file that is missing, damaged or without classes.
    """
    files: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    for path in paths:
        annotations = cars_annotations(path)
        if annotations is None:
            raise FleetError(f"{where}: there is no devkit with annotations beside {path}")
        rows = _matlab(annotations, "annotations", where)
        if "class" not in (rows.dtype.names or ()):
            raise FleetError(
                f"{where}: {annotations} has no classes; the archive's "
                f"{path.name}_annos_withlabels.mat has them"
            )
        meta = path.parent / "devkit" / "cars_meta.mat"
        own = class_list([str(name) for name in _matlab(meta, "class_names", where)], str(meta))
        if names and own != names:
            raise FleetError(f"{where}: {meta} lists other classes than the other folders")
        names = own
        with reading(f"{where}: {annotations}"):
            files += [path / str(name) for name in rows["fname"]]
            labels += [int(number) - 1 for number in rows["class"]]  # MATLAB counts from 1
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise FleetError(f"{where}: the annotations name {missing}, which is not there")
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    return RawSamples(as_objects(files), np.array(labels), names, sizes, None, where)


def _matlab(path: Path, name: str, where: str) -> np.ndarray:
    with reading(f"{where}: cannot read {name} in {path}"):
        content: dict[str, Any] = loadmat(path, squeeze_me=True)
        return np.atleast_1d(content[name])


# --- what lies at a path ----------------------------------------------------------------------


def data_at(path: Path, image_size: int | None = None, classes: int | None = None) -> Data:
    """The settings for the images at a path, whatever form they have.

    A folder of parquet files (``train*`` and ``test*``, else all are for training), of ``train``
    and ``test`` folders, of ``cars_train`` and ``cars_test``, or of class folders; a parquet or
    .npz file. Columns are found by their usual names.

    Raises:
        FleetError: if it is none of these.
    """
    with reading(f"--data: {path}"):
        path.stat()
    source, train, test = _parts(path)
    settings: dict[str, Any] = {"source": source, "train": train, "test": test or None}
    if source == "parquet":
        settings |= _columns(train[0])
    return Data(image_size=image_size, classes=classes, **settings)


def _parts(path: Path) -> tuple[Literal["arrays", "images", "parquet"], list[Path], list[Path]]:
    if path.suffix.lower() == ".npz":
        return "arrays", [path], []
    with reading(f"--data: {path}"):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix.lower() == ".parquet"]
    if files:
        test = [file for file in files if file.name.startswith("test")]
        train = [file for file in files if file.name.startswith("train")]
        if train and (other := [file for file in files if file not in (*train, *test)]):
            _log.warning(f"--data: left out, as it is neither train nor test: {other[0]}")
        return "parquet", train or files, test if train else []
    if not path.is_dir():
        raise FleetError(f"--data: {path} is no .npz file, .parquet file or folder")
    for train, test in (("train", "test"), ("cars_train", "cars_test")):
        if (path / train).is_dir():
            others = [p.name for p in sorted(path.iterdir()) if p.is_dir()]
            if other := [name for name in others if name not in (train, test)]:
                told = listed([one_line(name, 60) for name in other])
                _log.warning(f"--data: neither {train} nor {test}, so left out of {path}: {told}")
            return "images", [path / train], [p for p in [path / test] if p.is_dir()]
    return "images", [path], []


def _columns(path: Path) -> dict[str, str]:
    parquet = optional_module("pyarrow.parquet")
    with reading(f"--data: cannot read {path}"):
        names = parquet.read_schema(path).names
    found = {}
    for setting, usual in (("image_column", _IMAGE_COLUMNS), ("label_column", _LABEL_COLUMNS)):
        column = next((name for name in usual if name in names), None)
        if column is None:
            raise FleetError(f"--data: {path} has no column {' or '.join(usual)}: {names}")
        found[setting] = column
    return found
