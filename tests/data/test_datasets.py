"""Reading data sets: every format, every way in which a file can be wrong."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from acme_fleet.config.data import Data
from acme_fleet.data.datasets import load_own, load_source
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.errors import FleetError
from acme_fleet_runtime.images import open_image

REAL_DATA = Path(os.environ.get("ACME_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
needs_cifar = pytest.mark.skipif(
    not (REAL_DATA / "cifar100").is_dir(), reason=f"no CIFAR-100 in {REAL_DATA}; set ACME_DATA"
)
needs_cars = pytest.mark.skipif(
    not (REAL_DATA / "stanford_cars_64").is_dir(),
    reason=f"no Stanford Cars in {REAL_DATA}; set ACME_DATA",
)


def some_images(count, side=6, channels=3, seed=0):
    shape = (count, side, side, channels) if channels else (count, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_npz(path, labels, **extra):
    labels = np.asarray(labels)
    np.savez(path, **{"images": some_images(len(labels)), "labels": labels, **extra})
    return path


def write_folder(path, classes=("ant", "bee"), each=8, side=6):
    for number, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i, array in enumerate(some_images(each, side, seed=number)):
            Image.fromarray(array).save(path / name / f"{i}.png")
    return path


def encoded(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def write_parquet(path, labels, metadata=None, images=None, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if images is None:
        images = [
            {"bytes": encoded(path.parent, array), "path": None}
            for array in some_images(len(labels))
        ]
    table = pa.table({"image": images, "label": labels, **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


LABELS = [0, 1, 2] * 6


# --- digits -----------------------------------------------------------------------------------


def test_digits_are_rescaled_from_sixteen_levels():
    from sklearn.datasets import load_digits

    source = load_source(Data())
    raw = np.sort(load_digits().images.mean(axis=(1, 2)))
    pixels = torch.cat([source.train.inputs["pixel_values"], source.test.inputs["pixel_values"]])
    assert pixels.shape == (1797, 1, 8, 8)
    assert pixels.dtype == torch.float32
    means = np.sort(((pixels.mean(dim=(1, 2, 3)) + 1) * 8).numpy())
    np.testing.assert_allclose(means, raw, atol=0.05)
    assert source.classes == [str(digit) for digit in range(10)]
    assert set(source.train.stored_bytes.tolist()) == {64}


def test_the_test_split_has_every_class_in_proportion_and_never_changes():
    first, second = load_source(Data()), load_source(Data(validation=0.5, public=0.1))
    assert torch.equal(first.test.inputs["pixel_values"], second.test.inputs["pixel_values"])
    assert len(first.test) == pytest.approx(1797 / 4, abs=1)
    for digit in range(10):
        held_out = int((first.test.labels == digit).sum())
        everything = held_out + int((first.train.labels == digit).sum())
        assert abs(held_out - everything / 4) < 1.01


# --- classes ----------------------------------------------------------------------------------


def test_the_first_classes_or_named_classes_are_kept_and_relabelled(tmp_path):
    path = write_npz(tmp_path / "a.npz", LABELS, label_names=np.array(["ant", "bee", "cow"]))
    first = load_source(Data(source="arrays", train=path, classes=2))
    assert first.classes == ["ant", "bee"]
    assert len(first.train) + len(first.test) == 12

    named = load_source(Data(source="arrays", train=path, classes=["cow", "ant"]))
    assert named.classes == ["cow", "ant"]
    assert set(named.train.labels.tolist()) == {0, 1}
    cows = {image.tobytes() for image in np.load(path)["images"][2::3]}
    kept = (named.train.inputs["pixel_values"] * 127.5 + 127.5).round().to(torch.uint8)
    for image, label in zip(kept, named.train.labels, strict=True):
        assert (image.permute(1, 2, 0).numpy().tobytes() in cows) == (int(label) == 0)


def test_numbers_in_yaml_name_classes():
    assert Data(classes=[3, 8]).classes == ["3", "8"]  # type: ignore[list-item]
    assert load_source(Data(classes=[3, 8])).classes == ["3", "8"]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (11, ["11 classes", "there are 10"]),
        (1, ["2 or more"]),
        (["3", "x"], ["unknown x", "0, 1, 2"]),
        (["3", "3"], ["more than once"]),
    ],
)
def test_impossible_classes(classes, words):
    with pytest.raises(FleetError) as caught:
        load_source(Data(classes=classes))
    assert all(word in str(caught.value) for word in ["data.classes", *words])


# --- arrays -----------------------------------------------------------------------------------


def test_arrays_with_their_own_test_file_in_another_order_of_names(tmp_path):
    train = write_npz(tmp_path / "a.npz", LABELS, label_names=np.array(["ant", "bee", "cow"]))
    test = write_npz(tmp_path / "b.npz", [0, 1, 1], label_names=np.array(["cow", "ant"]))
    source = load_source(Data(source="arrays", train=train, test=test))
    assert len(source.train) == 18
    assert source.test.labels.tolist() == [2, 0, 0]
    assert set(source.train.stored_bytes.tolist()) == {6 * 6 * 3}


def test_several_files_are_one_data_set_and_text_labels_name_themselves(tmp_path):
    paths = [
        write_npz(tmp_path / "a.npz", np.array(["bee", "ant"] * 4)),
        write_npz(tmp_path / "b.npz", np.array(["cow"] * 4)),
    ]
    source = load_source(Data(source="arrays", train=paths))
    assert source.classes == ["ant", "bee", "cow"]
    assert len(source.train) + len(source.test) == 12


@pytest.mark.parametrize("images", [np.full((8, 4, 4), 0.25), np.full((8, 4, 4), 0.25, "f2")])
def test_floats_from_zero_to_one_are_taken_as_they_are(tmp_path, images):
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1] * 4))
    source = load_source(Data(source="arrays", train=tmp_path / "a.npz"))
    assert source.train.inputs["pixel_values"].shape[1:] == (1, 4, 4)
    assert torch.all(source.train.inputs["pixel_values"] == -0.5)
    assert source.train.stored_bytes[0] == images[0].nbytes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [0, 1]}, ["lacks images", "it has labels"]),
        ({"images": np.zeros((2, 4, 4), "u1"), "labels": [0, 1, 1]}, ["(2, 4, 4)", "(3,)"]),
        ({"images": np.zeros((2, 4), "u1"), "labels": [0, 1]}, ["(2, 4)", "height"]),
        ({"images": np.zeros((0, 4, 4), "u1"), "labels": np.zeros(0, int)}, ["no sample"]),
        ({"images": np.zeros((2, 4, 4), "u1"), "labels": [0, -1]}, ["-1", "negative"]),
        ({"images": np.zeros((2, 4, 4), "u1"), "labels": [0.0, 1.0]}, ["float", "integers"]),
        ({"images": np.full((2, 4, 4), 7.5), "labels": [0, 1]}, ["0..1", "7.5"]),
        ({"images": np.full((2, 4, 4), np.nan), "labels": [0, 1]}, ["0..1", "nan"]),
        ({"images": np.full((2, 4, 4), 300), "labels": [0, 1]}, ["0..255", "300"]),
        ({"images": np.zeros((2, 4, 4), bool), "labels": [0, 1]}, ["bool"]),
        ({"images": np.zeros((2, 4, 6), "u1"), "labels": [0, 1]}, ["4 × 6", "image_size"]),
        (
            {"images": np.zeros((2, 4, 4), "u1"), "labels": [0, 2], "label_names": ["a", "b"]},
            ["label 2", "2 names"],
        ),
        (
            {"images": np.array([None, {}], dtype=object), "labels": [0, 1]},
            ["not a readable .npz"],
        ),
    ],
)
def test_bad_arrays(tmp_path, content, words):
    np.savez(tmp_path / "a.npz", **{name: np.asarray(part) for name, part in content.items()})
    with pytest.raises(FleetError) as caught:
        load_source(Data(source="arrays", train=tmp_path / "a.npz"))
    assert all(word in str(caught.value) for word in ["data.train", *words])


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FleetError, match="readable"):
        load_source(Data(source="arrays", train=tmp_path / "a.npz"))


def test_a_bare_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(FleetError, match="readable"):
        load_source(Data(source="arrays", train=tmp_path / "a.npy"))


def test_files_that_do_not_belong_together(tmp_path):
    one = write_npz(tmp_path / "a.npz", LABELS, label_names=np.array(["a", "b", "c"]))
    other = write_npz(tmp_path / "b.npz", LABELS, label_names=np.array(["a", "b", "d"]))
    united = load_source(Data(source="arrays", train=[other, one])).classes
    assert united == ["a", "b", "c", "d"]
    small = write_npz(tmp_path / "c.npz", LABELS, images=some_images(18, side=4))
    plain = write_npz(tmp_path / "d.npz", LABELS)
    with pytest.raises(FleetError, match="shape"):
        load_source(Data(source="arrays", train=[plain, small]))


# --- folders ----------------------------------------------------------------------------------


def test_folders_of_images(tmp_path):
    source = load_source(Data(source="images", train=write_folder(tmp_path / "train")))
    assert source.classes == ["ant", "bee"]
    assert source.train.inputs["pixel_values"].shape == (12, 3, 6, 6)
    sizes = {file.stat().st_size for file in tmp_path.rglob("*.png")}
    assert set(source.train.stored_bytes.tolist()) <= sizes


def test_images_of_several_sizes_need_image_size(tmp_path):
    write_folder(tmp_path / "d", ("ant",), side=6)
    write_folder(tmp_path / "d", ("bee",), side=9)
    with pytest.raises(
        FleetError, match=r"ant/0\.png has 6 × 6 pixels, .*bee/\d\.png 9 × 9; set `data.image_size`"
    ):
        load_source(Data(source="images", train=tmp_path / "d"))
    source = load_source(Data(source="images", train=tmp_path / "d", image_size=4))
    assert source.train.inputs["pixel_values"].shape[1:] == (3, 4, 4)


def test_folders_that_hold_no_data_set(tmp_path):
    with pytest.raises(FleetError, match="class folders"):
        load_source(Data(source="images", train=tmp_path))
    (tmp_path / "ant").mkdir()
    with pytest.raises(FleetError, match="no image files"):
        load_source(Data(source="images", train=tmp_path))
    (tmp_path / "ant" / "a.png").write_bytes(b"no image")
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "b.png").write_bytes(b"no image")
    with pytest.raises(FleetError, match=r"a\.png"):
        load_source(Data(source="images", train=tmp_path))


def test_a_test_class_that_training_lacks(tmp_path):
    train = write_folder(tmp_path / "train")
    test = write_folder(tmp_path / "test", ("ant", "wasp"))
    with pytest.raises(FleetError, match=r"data\.test: class wasp .* ant, bee"):
        load_source(Data(source="images", train=train, test=test))


# --- parquet ----------------------------------------------------------------------------------


def test_names_in_the_metadata_of_parquet(tmp_path):
    bars = write_parquet(tmp_path / "a.parquet", LABELS, {"label_names": "Kia, red|VW|Audi"})
    assert load_source(Data(source="parquet", train=bars)).classes == ["Kia, red", "VW", "Audi"]
    commas = write_parquet(tmp_path / "b.parquet", LABELS, {"label_names": "ant,bee,cow"})
    assert load_source(Data(source="parquet", train=commas)).classes == ["ant", "bee", "cow"]
    features = {"info": {"features": {"label": {"names": ["x", "y", "z"]}}}}
    hub = write_parquet(tmp_path / "c.parquet", LABELS, {"huggingface": json.dumps(features)})
    assert load_source(Data(source="parquet", train=hub)).classes == ["x", "y", "z"]
    none = write_parquet(tmp_path / "d.parquet", LABELS)
    assert load_source(Data(source="parquet", train=none)).classes == ["0", "1", "2"]


def test_parquet_in_several_files_with_stored_sizes(tmp_path):
    *paths, test = [write_parquet(tmp_path / f"{i}.parquet", LABELS) for i in range(3)]
    source = load_source(Data(source="parquet", train=paths, test=test))
    assert len(source.train) == 36
    assert len(source.test) == 18
    size = len(encoded(tmp_path, some_images(18)[0]))
    assert source.train.stored_bytes[0] == size
    pixels = source.test.inputs["pixel_values"][0].permute(1, 2, 0)
    np.testing.assert_allclose(pixels.numpy() * 127.5 + 127.5, some_images(18)[0], atol=1e-3)


def test_bytes_and_text_columns_of_parquet(tmp_path):
    images = [encoded(tmp_path, array) for array in some_images(8)]
    path = write_parquet(tmp_path / "a.parquet", ["no", "yes"] * 4, images=images)
    assert load_source(Data(source="parquet", train=path)).classes == ["no", "yes"]


def test_only_the_classes_kept_are_decoded(tmp_path):
    images = [encoded(tmp_path, array) for array in some_images(18)]
    images[2::3] = [b"broken"] * 6
    path = write_parquet(tmp_path / "a.parquet", LABELS, images=images)
    assert load_source(Data(source="parquet", train=path, classes=2)).classes == ["0", "1"]
    with pytest.raises(FleetError, match=r"data\.train: cannot read a sample of class 2"):
        load_source(Data(source="parquet", train=path, image_size=4))


def test_bad_parquet(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", LABELS)
    with pytest.raises(FleetError, match=r"a\.parquet lacks pic; it has image, label"):
        load_source(Data(source="parquet", train=path, image_column="pic"))
    with pytest.raises(FleetError, match="column 'label' holds int, not image files"):
        load_source(Data(source="parquet", train=path, image_column="label"))
    natural = {"scheme": "natural", "column": "who"}
    with pytest.raises(FleetError, match="lacks who"):
        load_source(Data.model_validate({"source": "parquet", "train": path, "partition": natural}))
    gap = write_parquet(tmp_path / "b.parquet", [0, None, 1])
    with pytest.raises(FleetError, match=r"b\.parquet, row 2: label is missing"):
        load_source(Data(source="parquet", train=gap))
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(FleetError, match=r"c\.parquet"):
        load_source(Data(source="parquet", train=tmp_path / "c.parquet"))
    lost = write_parquet(
        tmp_path / "d.parquet", [0, 1], images=[{"bytes": None, "path": "/no/x.png"}] * 2
    )
    with pytest.raises(FleetError, match=r"/no/x\.png"):
        load_source(Data(source="parquet", train=lost))


# --- Hugging Face -----------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.usefixtures("hub_cache")
def test_a_folder_that_datasets_reads(tmp_path):
    write_folder(tmp_path / "pets" / "train")
    write_folder(tmp_path / "pets" / "test", each=2)
    folder = str(tmp_path / "pets")
    source = load_source(Data(source="huggingface", train=folder, test="test"))
    assert source.classes == ["ant", "bee"]
    assert len(source.train) == 16
    assert len(source.test) == 4
    assert source.train.inputs["pixel_values"].shape[1:] == (3, 6, 6)
    with pytest.raises(FleetError, match="final"):
        load_source(Data(source="huggingface", train=folder, test="final"))
    with pytest.raises(FleetError, match="lacks pic; it has image, label"):
        load_source(Data(source="huggingface", train=folder, image_column="pic"))


@pytest.mark.usefixtures("hub_cache")
def test_a_data_set_that_is_not_there(tmp_path):
    with pytest.raises(FleetError, match=r"data\.train: cannot load split 'train'"):
        load_source(Data(source="huggingface", train=str(tmp_path / "nothing")))


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["arrays", "images", "parquet"])
@pytest.mark.parametrize("key", ["train", "test"])
def test_a_missing_path_is_named_with_its_key(tmp_path, source, key):
    paths = {"train": write_parquet(tmp_path / "a.parquet", LABELS)} if key == "test" else {}
    paths[key] = tmp_path / "nothing"
    if key == "test" and source != "parquet":
        paths["train"] = (
            write_npz(tmp_path / "a.npz", LABELS)
            if source == "arrays"
            else write_folder(tmp_path / "d")
        )
    with pytest.raises(FleetError, match=rf"data\.{key}: .*nothing: no such file or folder"):
        load_source(Data(source=source, **paths))


def test_settings_that_contradict_each_other():
    with pytest.raises(ValidationError, match="remove `train`"):
        Data(train="x.npz")
    with pytest.raises(ValidationError, match="one name or folder"):
        Data(source="huggingface", train=["a", "b"])  # type: ignore[list-item]
    with pytest.raises(FleetError, match="no column 'who'"):
        load_source(Data.model_validate({"partition": {"scheme": "natural", "column": "who"}}))
    with pytest.raises(FleetError, match="list of paths is empty"):
        load_source(Data(source="arrays", train=[]))


def test_text_is_a_path_unless_it_names_a_data_set_of_the_hub():
    assert Data(source="parquet", train="a.parquet").train == Path("a.parquet")
    assert Data(source="huggingface", train="mnist").train == "mnist"
    assert Data(source="huggingface", train="./mnist").train == Path("mnist")


@pytest.mark.parametrize(("module", "source"), [("PIL", "images"), ("pyarrow", "parquet")])
def test_what_to_install_is_said(tmp_path, monkeypatch, module, source):
    path = tmp_path / "d"
    if source == "images":
        write_folder(path)
    else:
        write_parquet(path, LABELS)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FleetError, match=r'pip install "acme-fleet\[data\]"'):
        load_source(Data(source=source, train=path))


# --- data of a device's own ---------------------------------------------------------------------


def test_own_data_are_matched_by_name(tmp_path):
    data = Data(source="images", train=write_folder(tmp_path / "train", ("ant", "bee", "cow")))
    source = load_source(data)
    names = np.array(["cow", "ant"])
    npz = load_own(write_npz(tmp_path / "o.npz", [0, 1], label_names=names), data, source, "d")
    assert npz.labels.tolist() == [2, 0]
    unnamed = load_own(write_npz(tmp_path / "u.npz", [0, 1]), data, source, "d")
    assert unnamed.labels.tolist() == [0, 1]
    folder = load_own(write_folder(tmp_path / "o", ("cow",), side=9), data, source, "d")
    assert set(folder.labels.tolist()) == {2}
    assert folder.inputs["pixel_values"].shape[1:] == (3, 6, 6)
    table = load_own(
        write_parquet(tmp_path / "o.parquet", [1, 0], {"label_names": "bee,cow"}),
        data,
        source,
        "d",
    )
    assert table.labels.tolist() == [2, 1]


def test_own_data_that_do_not_fit(tmp_path):
    data = Data(source="images", train=write_folder(tmp_path / "train"))
    source = load_source(data)
    wasp = write_folder(tmp_path / "o", ("ant", "wasp"))
    with pytest.raises(FleetError, match=r"device cam: data: class wasp .* ant, bee"):
        load_own(wasp, data, source, "device cam: data")
    beyond = write_npz(tmp_path / "o.npz", [0, 7])
    with pytest.raises(FleetError, match="class 7 is not known"):
        load_own(beyond, data, source, "d")
    with pytest.raises(FleetError, match=r"x\.csv: no such file"):
        load_own(tmp_path / "x.csv", data, source, "d")
    (tmp_path / "x.csv").touch()
    with pytest.raises(FleetError, match=r"x\.csv is no \.npz"):
        load_own(tmp_path / "x.csv", data, source, "d")


# --- preprocessing ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 20, 33])
def test_pixels_equal_those_of_hugging_face(tmp_path, side):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ours = ImagePreprocessing.centred(20, 20, 3)
    (tmp_path / "preprocessor_config.json").write_text(ours.model_dump_json())
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path)
    image = Image.fromarray(some_images(1, side)[0])
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.pixel_values([image]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pixel_values([np.asarray(image)]), expected, atol=1e-5, rtol=0)


def test_preprocessing_round_trips_through_json():
    ours = ImagePreprocessing.centred(8, 9, 1)
    assert ImagePreprocessing.model_validate_json(ours.model_dump_json()) == ours
    assert ImagePreprocessing.model_validate(ours.model_dump(mode="json")) == ours


@pytest.mark.parametrize(
    "change", [{"image_mean": [0.5]}, {"image_mean": [], "image_std": []}, {"do_pad": True}]
)
def test_preprocessing_that_contradicts_itself(change):
    content = ImagePreprocessing.centred(8, 8, 3).model_dump(mode="json")
    with pytest.raises(ValidationError):
        ImagePreprocessing.model_validate({**content, **change})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_every_colour_mode_fit_a_model(tmp_path, mode, channels):
    path = tmp_path / "a.tif"
    Image.new("RGB", (5, 7), (255, 255, 255)).convert(mode).save(path)
    pixels = ImagePreprocessing.centred(4, 4, channels).pixel_values([open_image(path, "x")])
    assert pixels.shape == (1, channels, 4, 4)
    torch.testing.assert_close(pixels, torch.ones(1, channels, 4, 4))


def test_grey_arrays_fit_a_colour_model_and_not_the_reverse():
    colour, grey = (ImagePreprocessing.centred(6, 6, channels) for channels in (3, 1))
    assert colour.pixel_values(some_images(2, channels=0)).shape == (2, 3, 6, 6)
    assert colour.pixel_values([]).shape == (0, 3, 6, 6)
    with pytest.raises(FleetError, match=r"\(6, 6, 3\)"):
        grey.pixel_values(some_images(2))
    with pytest.raises(FleetError, match="mixed"):
        grey.pixel_values([np.zeros((6, 6)), np.zeros((6, 6), np.uint8)])


def test_float_and_byte_images_of_one_content_agree_after_resizing():
    preprocessing = ImagePreprocessing.centred(5, 5, 1)
    images = some_images(3, side=11, channels=0)
    exact = preprocessing.pixel_values(images / 255)
    assert (preprocessing.pixel_values(images) - exact).abs().max() < 2 / 255  # one rounding


def test_a_photo_is_turned_upright(tmp_path):
    array = some_images(1, side=8)[0]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(array[::-1, ::-1].copy()).save(tmp_path / "a.png", exif=exif)
    pixels = ImagePreprocessing.centred(8, 8, 3).pixel_values([open_image(tmp_path / "a.png", "")])
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0) * 127.5 + 127.5, array, atol=1e-3)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(FleetError, match=r"nothing\.png"):
        ImagePreprocessing.centred(4, 4, 1).read([tmp_path / "nothing.png"])
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(FleetError, match=r"a\.png"):
        ImagePreprocessing.centred(4, 4, 1).read([tmp_path / "a.png"])
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(FleetError, match="8 bits"):
        ImagePreprocessing.centred(4, 4, 1).pixel_values([open_image(tmp_path / "deep.png", "x")])


# --- real data --------------------------------------------------------------------------------


@needs_cifar
def test_cifar_100():
    folder = REAL_DATA / "cifar100"
    data = Data(
        source="parquet",
        train=folder / "train-00000-of-00003.parquet",
        test=folder / "test-00000-of-00001.parquet",
        image_column="img",
        label_column="fine_label",
        classes=["whale", "apple"],
    )
    source = load_source(data)
    assert source.classes == ["whale", "apple"]
    assert source.train.inputs["pixel_values"].shape[1:] == (3, 32, 32)
    assert torch.bincount(source.test.labels).tolist() == [100, 100]
    assert source.train.stored_bytes.float().mean() < 32 * 32 * 3


@needs_cars
def test_stanford_cars():
    folder = REAL_DATA / "stanford_cars_64"
    path = folder / "train-00000-of-00001.parquet"
    data = Data(source="parquet", train=path, image_column="img", image_size=16, classes=3)
    source = load_source(data)
    assert source.classes[0] == "AM General Hummer SUV 2000"
    assert source.train.inputs["pixel_values"].shape[1:] == (3, 16, 16)
