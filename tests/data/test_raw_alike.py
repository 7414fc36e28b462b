"""Names that look alike are one or an error; files named twice; images nearly black."""

from __future__ import annotations

import json
import logging
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acme_fleet.config.data import Data
from acme_fleet.data.datasets import check_images, list_source, load_source, read_own
from acme_fleet.data.raw import Columns, class_list, owners
from acme_fleet.data.sources.files import read_arrays
from acme_fleet.data.sources.folder import read_folders
from acme_fleet.errors import FleetError

_COMPOSED, _DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def _npz(path: Path, labels: list[Any], **arrays: Any) -> Path:
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None] * 10
    images = np.broadcast_to(pixels, (len(labels), 4, 4))
    np.savez(path, **{"images": images, "labels": np.array(labels), **arrays})
    return path


def _photos(folder: Path, *classes: str) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (4, 4), 60 * number).save(folder / name / f"{number}.png")
    return folder


def test_an_accent_is_the_same_letter_in_every_encoding(tmp_path: Path):
    train = [_npz(tmp_path / "a.npz", [_COMPOSED, "tea"] * 4)]
    train.append(_npz(tmp_path / "b.npz", [_DECOMPOSED, "tea"] * 4))
    wanted = [_DECOMPOSED, "tea"]
    listed = list_source(Data(source="arrays", train=train, classes=wanted))
    assert listed.classes == [_COMPOSED, "tea"]
    assert np.bincount([*listed.train.labels, *listed.test.labels]).tolist() == [8, 8]
    folders = read_folders([_photos(tmp_path / "photos", _DECOMPOSED, "tea")], "x")
    assert folders.names == [_COMPOSED, "tea"]
    with pytest.raises(FleetError, match="two classes have the name"):
        class_list([_COMPOSED, _DECOMPOSED], "x")


def test_names_that_differ_in_spaces_alone(tmp_path: Path):
    path = _npz(tmp_path / "a.npz", ["a", "a ", "b", "b"] * 4)
    with pytest.raises(FleetError, match="the classes 'a' and 'a ' differ in spaces alone"):
        list_source(Data(source="arrays", train=path))
    assert list_source(Data(source="arrays", train=_npz(path, ["a", "A"] * 4))).classes == [
        "A",
        "a",
    ]
    with pytest.raises(FleetError, match="row 1: the owners 'ann x' and 'ann  x' differ"):
        owners(["ann x", "ann  x", "bob"], lambda number: f"row {number}")


@pytest.mark.parametrize("again", [lambda old, new: new.hardlink_to(old), Path.symlink_to])
def test_what_is_trained_on_tests_nothing(tmp_path: Path, again: Callable[[Path, Path], None]):
    path, other = _npz(tmp_path / "a.npz", [0, 1] * 4), tmp_path / "b.npz"
    again(*((path, other) if again is not Path.symlink_to else (other, path)))
    for test in (path, other):
        with pytest.raises(FleetError, match=r"npz is in data\.train too"):
            list_source(Data(source="arrays", train=[path], test=test))
    with pytest.raises(FleetError, match=r"data\.train: .*b\.npz is named twice"):
        list_source(Data(source="arrays", train=[path, other]))


def test_an_image_that_cannot_be_used_is_named(tmp_path: Path):
    folder = _photos(tmp_path / "photos", "a", "b")
    deep = folder / "a" / "deep.png"
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(deep)
    with pytest.raises(FleetError, match=r"cannot read .*deep\.png: images of more than 8 bits"):
        load_source(Data(source="images", train=folder, image_size=4))
    with pytest.raises(FleetError, match=r"cannot read .*deep\.png: images of more than 8 bits"):
        check_images(read_own(folder, Data(source="images", train=folder), "device a: data"))


def test_pictures_that_other_programs_would_run_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = _photos(tmp_path / "photos", "a", "b")
    script = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    (folder / "a" / "drawing.eps").write_text(script)
    with caplog.at_level(logging.WARNING):
        assert len(load_source(Data(source="images", train=folder)).train) == 6
    assert "left out, as they are no images" in caplog.text
    (folder / "a" / "drawing.eps").rename(folder / "a" / "drawing.png")
    with pytest.raises(FleetError, match=r"drawing\.png as an image: Pillow knows no such format"):
        load_source(Data(source="images", train=folder, image_size=4))


def test_integers_of_another_range_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    columns, dark = Columns("images", "labels"), np.full((4, 4, 4), 16)
    with caplog.at_level(logging.WARNING):
        read_arrays([_npz(tmp_path / "a.npz", [0, 1] * 4)], columns, "x")
        assert not caplog.text
        read_arrays([_npz(tmp_path / "b.npz", [0, 1] * 2, images=dark)], columns, "x")
    assert "the largest value of all images is 16, nearly black" in caplog.text


def test_an_archive_that_holds_an_array_twice_or_is_none(tmp_path: Path):
    path = _npz(tmp_path / "a.npz", [0, 1] * 4)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("labels.npy", archive.read("labels.npy"))
    with pytest.raises(FleetError, match="an array stands twice in it: images, labels, labels"):
        read_arrays([path], Columns("images", "labels"), "x")
    path.write_bytes(json.dumps([0, 1]).encode())
    with pytest.raises(FleetError, match=r"not a readable \.npz file: File is not a zip file"):
        read_arrays([path], Columns("images", "labels"), "x")
