"""Data in other layouts: Stanford Cars as published, and what is found at a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from acme_fleet.config.data import Data
from acme_fleet.data.datasets import load_source
from acme_fleet.data.sources.archives import data_at
from acme_fleet.errors import FleetError

_NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi, the second"]


def _annotations(path: Path, numbers: list[int] | None, count: int) -> None:
    """A structure array as in the archive: boxes, classes from 1, file names."""
    fields = [("bbox_x1", object), ("fname", object)]
    fields += [("class", object)] if numbers else []
    rows = np.zeros((1, count), dtype=fields)
    for i in range(count):
        rows[0, i]["bbox_x1"] = np.array([[7]], dtype=np.uint8)
        rows[0, i]["fname"] = f"{i + 1:05}.jpg"
        if numbers:
            rows[0, i]["class"] = np.array([[numbers[i]]], dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    savemat(path, {"annotations": rows})


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    """ROOT/cars_train, ROOT/cars_test, ROOT/devkit; the red channel says the image's number."""
    for part, count in (("cars_train", 6), ("cars_test", 3)):
        (tmp_path / part).mkdir()
        for i in range(count):
            image = Image.new("RGB", (16 + i, 12), (40 * i, 0, 0))
            image.save(tmp_path / part / f"{i + 1:05}.jpg")
    _annotations(tmp_path / "devkit" / "cars_train_annos.mat", [3, 1, 2, 2, 1, 3], 6)
    _annotations(tmp_path / "devkit" / "cars_test_annos.mat", None, 3)
    _annotations(tmp_path / "cars_test_annos_withlabels.mat", [2, 3, 1], 3)
    names = np.array([_NAMES], dtype=object)
    savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": names})
    return tmp_path


def test_stanford_cars_are_read_as_published(cars: Path):
    source = load_source(data_at(cars, image_size=8))
    assert source.classes == _NAMES
    assert source.train.labels.tolist() == [2, 0, 1, 1, 0, 2]
    assert source.test.labels.tolist() == [1, 2, 0]
    red = source.train.inputs["pixel_values"][:, 0].mean(dim=(1, 2))
    assert red.tolist() == sorted(red.tolist()), "images must stay with their labels"
    assert source.train.inputs["pixel_values"].shape == (6, 3, 8, 8)
    sizes = [path.stat().st_size for path in sorted((cars / "cars_train").iterdir())]
    assert source.train.stored_bytes.tolist() == sizes


def test_a_fleet_file_may_name_the_folders_themselves(cars: Path):
    data = Data(source="images", train=cars / "cars_train", image_size=8, classes=_NAMES[:2])
    source = load_source(data)
    assert len(source.train) + len(source.test) == 4


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("cars_test_annos_withlabels.mat", "has no classes"),
        ("devkit/cars_meta.mat", "cars_meta.mat"),
        ("cars_train/00003.jpg", "00003.jpg, which is not there"),
    ],
)
def test_what_is_missing_is_named(cars: Path, lost: str, said: str):
    (cars / lost).unlink()
    with pytest.raises(FleetError, match=said):
        load_source(data_at(cars, image_size=8))


def test_a_damaged_annotation_is_an_error_of_the_fleet(cars: Path):
    (cars / "devkit" / "cars_train_annos.mat").write_bytes(b"not a MATLAB file")
    with pytest.raises(FleetError, match=r"cars_train_annos\.mat"):
        load_source(data_at(cars, image_size=8))


# --- what lies at a path ----------------------------------------------------------------------


def _class_folders(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / name / "1.png")


def test_class_folders_with_and_without_a_test_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    _class_folders(tmp_path / "plain")
    assert data_at(tmp_path / "plain").train == [tmp_path / "plain"]
    assert data_at(tmp_path / "plain").test is None
    _class_folders(tmp_path / "split" / "train")
    _class_folders(tmp_path / "split" / "test")
    data = data_at(tmp_path / "split")
    assert (data.train, data.test) == ([tmp_path / "split/train"], [tmp_path / "split/test"])
    assert caplog.text == ""
    _class_folders(tmp_path / "split" / "valid")
    assert data_at(tmp_path / "split") == data
    assert "neither train nor test, so left out of" in caplog.text


def test_parquet_columns_are_found_by_their_usual_names(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    for name in ("test-0", "train-0", "train-1"):
        rows = {"img": [b"x"], "fine_label": [0], "coarse_label": [1]}
        parquet.write_table(table(rows), tmp_path / f"{name}.parquet")
    data = data_at(tmp_path)
    assert isinstance(data.train, list)
    assert [path.name for path in map(Path, data.train)] == ["train-0.parquet", "train-1.parquet"]
    assert (data.image_column, data.label_column) == ("img", "fine_label")
    parquet.write_table(table({"picture": [b"x"]}), tmp_path / "alone.parquet")
    with pytest.raises(FleetError, match="no column image or img"):
        data_at(tmp_path / "alone.parquet")


def test_a_path_of_nothing_is_named(tmp_path: Path):
    with pytest.raises(FleetError, match="no such file or folder"):
        data_at(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(FleetError, match=r"x\.txt is no"):
        data_at(tmp_path / "x.txt")
