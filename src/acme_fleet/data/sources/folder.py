"""Folders of images, in class folders or without labels: each image file in them is a sample."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from acme_fleet.data.raw import RawSamples, as_objects, coded
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, reading
from acme_fleet_runtime.images import pillow, readable_formats
from acme_fleet_runtime.inputs import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

# What file managers and archives leave behind.
_LITTER = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"))


def read_images(path: Path, where: str) -> RawSamples:
    """Read a folder of class folders, or one that holds image files alone: they have no labels.

    Files that are no images are treated as :func:`read_folders` does.

    Raises:
        FleetError: if there is no image, or images lie beside folders.
    """
    folders, files = _listed(path, where)
    if folders:
        return read_folders([path], where)
    images, others = _sorted_out(files)
    if not images:
        raise FleetError(f"{where}: {path} holds neither class folders nor image files")
    _warn_of(others, where)
    return RawSamples(as_objects(images), None, None, _sizes(images), None, where)


def read_folders(paths: Sequence[Path], where: str) -> RawSamples:
    """Read folders whose sub-folders are the classes and hold image files.

    Hidden files and those of file managers are ignored; other files that are no images are left
    out, and a warning of this module's logger says so.

    Raises:
        FleetError: if there is no class folder, one without images, or something that may hold
            images and would be left out.
    """
    files: list[Path] = []
    classes: list[str] = []
    skipped: list[Path] = []
    for path in paths:
        folders, beside = _listed(path, where)
        if not folders:
            raise FleetError(f"{where}: {path} holds no class folders")
        for file in beside:
            if _is_image(file):
                raise FleetError(
                    f"{where}: the image {file} lies beside the class folders; move it into one"
                )
        skipped += beside
        for folder in folders:
            inner, found = _listed(folder, where)
            if inner:
                raise FleetError(
                    f"{where}: the class folder {folder} holds the folder {inner[0].name}; "
                    f"move its images up, or make it a class folder"
                )
            images, others = _sorted_out(found)
            skipped += others
            if not images:
                raise FleetError(
                    f"{where}: the class folder {folder} holds no image files; remove it"
                )
            files += images
            classes += [_class_name(folder, where)] * len(images)
    _warn_of(skipped, where)
    labels, names, text = coded(classes, None, lambda number: f"{where}: {files[number]}")
    return RawSamples(as_objects(files), labels, names, _sizes(files), None, where, text)


def _sorted_out(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The images among files, and the others."""
    images: list[Path] = []
    others: list[Path] = []
    for file in files:
        (images if _is_image(file) else others).append(file)
    return images, others


def _warn_of(skipped: Sequence[Path], where: str) -> None:
    if skipped:
        shown = ", ".join(one_line(str(file)) for file in skipped[:3])
        rest = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
        _warn_once(f"{where}: left out, as they are no images: {shown}{rest}")


@cache
def _warn_once(told: str) -> None:
    """A command may read a folder for each of its devices; one warning is enough."""
    _log.warning(told)


def _sizes(files: Sequence[Path]) -> np.ndarray:
    """Bytes of each file, int64 of shape ``(files,)``."""
    return np.array([file.stat().st_size for file in files], dtype=np.int64)


def _listed(folder: Path, where: str) -> tuple[list[Path], list[Path]]:
    """The folders and regular files in a folder, sorted; links count as what they lead to."""
    with reading(f"{where}: {folder}"):
        entries = sorted(folder.iterdir())
    entries = [x for x in entries if not x.name.startswith(".") and x.name.lower() not in _LITTER]
    for entry in entries:
        with reading(f"{where}: {entry}"):
            if entry.is_symlink() and not entry.exists():
                raise FleetError(f"{where}: {entry} is a link to nothing; remove it")
            if not entry.is_dir() and not entry.is_file():
                raise FleetError(f"{where}: {entry} is no regular file; remove it")
    return [x for x in entries if x.is_dir()], [x for x in entries if not x.is_dir()]


def _is_image(file: Path) -> bool:
    """By the name or, where that says nothing, by the content."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    library = pillow()
    with reading(f"cannot read {file}"), file.open("rb") as content:
        try:
            with reading(file), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                library.open(content, formats=readable_formats())
        except FleetError as error:
            # A format that Pillow knows and cannot open is a damaged image.
            return not isinstance(error.__cause__, library.UnidentifiedImageError)
    return True


def _class_name(folder: Path, where: str) -> str:
    name = os.fsencode(folder.name)
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise FleetError(
            f"{where}: the name of the class folder {one_line(str(folder))} is not UTF-8; rename it"
        ) from None
