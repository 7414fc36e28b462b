"""A checkpoint's preprocessing is followed as transformers follows it, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, CLIPConfig, DeiTConfig, SiglipConfig, ViTConfig
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from acme_fleet.config.data import Data
from acme_fleet.data.checkpoint_images import read_normalization
from acme_fleet.data.datasets import load_source
from acme_fleet.data.image import ImagePreprocessing, ImageSize, Normalization
from acme_fleet.errors import FleetError

FILE = "preprocessor_config.json"


def photo(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth image with some noise, transparent in places if the mode allows it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (2 + k)) + np.cos(columns / (3 + k)) for k in range(4)]
    values = np.stack(waves, axis=2) * 50 + 128 + random.normal(0, 12, (height, width, 4))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8), "RGBA").convert(mode)


def theirs(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images, return_tensors="pt")["pixel_values"].float()


def by_class(rule: dict[str, Any], image: Image.Image) -> torch.Tensor:
    """The same without a file, which is faster."""
    classes = (
        ViTImageProcessorPil,
        DeiTImageProcessorPil,
        BitImageProcessorPil,
        CLIPImageProcessorPil,
        SiglipImageProcessorPil,
    )
    kinds = {kind.__name__.removesuffix("Pil"): kind for kind in classes}
    processor = kinds[rule["image_processor_type"]](**rule)
    return processor([image], return_tensors="pt")["pixel_values"].float()


def write(folder: Path, content: Any, config: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(content))
    if config is not None:
        config.save_pretrained(folder)
    return folder


sides = st.integers(1, 24)
sizes = (
    sides
    | st.builds(lambda h, w: {"height": h, "width": w}, sides, sides)
    | st.tuples(sides, sides).map(list)
    | st.builds(lambda n: {"shortest_edge": n}, sides)
)
statistics = st.lists(st.floats(0.05, 200), min_size=3, max_size=3) | st.floats(0.05, 2)
rules = st.fixed_dictionaries(
    {
        "image_processor_type": st.sampled_from(
            [f"{kind}ImageProcessor" for kind in ("ViT", "DeiT", "Bit", "CLIP", "Siglip")]
        ),
        "size": sizes,
        "do_convert_rgb": st.just(True),
    },
    optional={
        "do_resize": st.booleans() | st.none(),
        "resample": st.integers(0, 5),
        "do_center_crop": st.booleans() | st.none(),
        "crop_size": sides | st.builds(lambda h, w: {"height": h, "width": w}, sides, sides),
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 1.0, 0.02]),
        "do_normalize": st.booleans() | st.none(),
        "image_mean": statistics,
        "image_std": statistics,
        "do_pad": st.just(False) | st.none(),
        "default_to_square": st.none(),
    },
)


@settings(max_examples=60)
@given(rules, st.tuples(st.integers(2, 30), st.integers(2, 30)), st.sampled_from(["RGB", "L", "P"]))
def test_every_rule_gives_the_pixels_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    rule: dict[str, Any],
    form: tuple[int, int],
    mode: str,
):
    folder = write(tmp_path_factory.getbasetemp() / "rule", rule)
    without_crop = rule["image_processor_type"] in ("ViTImageProcessor", "SiglipImageProcessor")
    if rule.get("do_center_crop") and "crop_size" not in rule and without_crop:
        with pytest.raises(FleetError, match="crop_size"):
            read_normalization(folder)
        return
    known = read_normalization(folder)
    assert known is not None
    image = photo(*form, mode)
    own = ImageSize(height=form[0], width=form[1])
    ours = ImagePreprocessing.of(known, own)
    expected = by_class(rule, image)
    if expected.shape[2:] != ours.result:  # the shortest edge of an image that is not square
        assert "shortest_edge" in str(ours.size)
        with pytest.raises(FleetError, match=r"set `data\.image_size`"):
            ours.pixel_values([image])
        return
    pixels = ours.pixel_values([image])
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=1e-5)
    # What ships says the same to transformers.
    document = ours.model_dump(mode="json")
    torch.testing.assert_close(pixels, by_class(document, image), atol=1e-5, rtol=1e-5)
    shipped = write(tmp_path_factory.getbasetemp() / "ships", document)
    assert ImagePreprocessing.of(ours.normalization) == ours
    again = read_normalization(shipped)
    assert again is not None
    assert ImagePreprocessing.of(again, own) == ours


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_colour_mode_is_converted_as_transformers_does(tmp_path: Path, mode: str):
    image = photo(9, 9, "RGBA").convert("P") if mode == "PA" else photo(9, 9, mode)
    image = image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    rule = {"image_processor_type": "ViTImageProcessor", "size": 8, "do_convert_rgb": True}
    known = read_normalization(write(tmp_path, rule))
    assert known is not None
    pixels = ImagePreprocessing.of(known).pixel_values([image])
    torch.testing.assert_close(pixels, theirs(tmp_path, [image]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(image_size=224),
        DeiTConfig(image_size=224),
        CLIPConfig(vision_config={"image_size": 224}),
        SiglipConfig(vision_config={"image_size": 224}),
    ],
)
def test_what_the_file_lacks_is_as_transformers_has_it(tmp_path: Path, config: Any):
    write(tmp_path, {"do_convert_rgb": True}, config)
    known = read_normalization(tmp_path)
    assert known is not None
    image = photo(300, 250)
    pixels = ImagePreprocessing.of(known).pixel_values([image])
    torch.testing.assert_close(pixels, theirs(tmp_path, [image]), atol=1e-5, rtol=0)


def test_a_size_that_the_file_lacks_is_the_models(tmp_path: Path):
    write(tmp_path, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, ViTConfig(image_size=12))
    known = read_normalization(tmp_path)
    assert known is not None
    assert known.result == (12, 12)
    (tmp_path / FILE).unlink()
    assert read_normalization(tmp_path) == Normalization(
        mean=(0.5,) * 3, std=(0.5,) * 3, size=ImageSize(height=12, width=12)
    )
    ViTConfig(image_size=[12, 12], num_channels=1).save_pretrained(tmp_path)
    grey = read_normalization(tmp_path)
    assert grey is not None
    assert (grey.mean, grey.result) == ((0.5,), (12, 12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_mean": [0.5] * 2}, "image_mean"),
        ({"image_std": [0.5]}, "image_std"),
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "image_mean"),
        ({"image_mean": []}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"image_std": 0}, "image_std"),
        ({"image_std": [-1, 1, 1]}, "image_std"),
        ({"image_mean": ["x", 1, 1]}, "image_mean"),
        ({"image_mean": [float("nan"), 1, 1]}, "image_mean"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": "big"}, "rescale_factor"),
        ({"resample": 9}, "resample"),
        ({"resample": "cubic"}, "resample"),
        ({"size": {"longest_edge": 9}}, "size"),
        ({"size": {"shortest_edge": 5, "longest_edge": 9}}, "size"),
        ({"size": {"max_height": 5, "max_width": 9}}, "size"),
        ({"size": [1, 2, 3]}, "size"),
        ({"size": -3}, "size"),
        ({"size": "big"}, "size"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 4}}, "crop_size"),
        ({"do_center_crop": True}, "crop_size"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"do_pad": True, "pad_size": 9}, "do_pad"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"use_square_size": True}, "use_square_size"),
        ({"data_format": "channels_last"}, "data_format"),
        ({"image_processor_type": "BeitImageProcessor"}, "BeitImageProcessor"),
        ({"image_processor_type": ["x"]}, "image_processor_type"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], words: str
):
    write(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": 8, **change})
    with pytest.raises(FleetError, match="cannot read the preprocessing of") as told:
        read_normalization(tmp_path)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@given(
    st.dictionaries(
        st.sampled_from(
            ["size", "crop_size", "image_mean", "image_std", "resample", "do_resize", "do_pad", "x"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), inner)
            ),
            max_leaves=4,
        ),
    )
    | st.text(max_size=5)
)
def test_no_file_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, content: Any):
    folder = write(tmp_path_factory.getbasetemp() / "any", content)
    try:
        known = read_normalization(folder)
    except FleetError:
        return
    assert known is None or len(known.mean) in (1, 3)


# --- with data --------------------------------------------------------------------------------


def folders(root: Path, *forms: tuple[int, int]) -> Path:
    for number, form in enumerate(forms):
        for name in ("ant", "bee"):
            (root / name).mkdir(parents=True, exist_ok=True)
            photo(*form, seed=number).save(root / name / f"{number}.png")
    return root


def test_photos_of_several_sizes_take_the_checkpoints(tmp_path: Path):
    root = folders(tmp_path / "d", (20, 30), (30, 20), (9, 9), (40, 40))
    rule = {"image_processor_type": "DeiTImageProcessor", "size": 16, "crop_size": 12}
    known = read_normalization(write(tmp_path / "c", rule))
    source = load_source(Data(source="images", train=root), known)
    assert source.train.inputs["pixel_values"].shape[1:] == (3, 12, 12)
    assert isinstance(source.preprocessing, ImagePreprocessing)
    # The size that the rule gives anyway changes nothing; another one is a plain resize.
    same = load_source(Data(source="images", train=root, image_size=12), known)
    assert same.preprocessing == source.preprocessing
    other = load_source(Data(source="images", train=root, image_size=10), known).preprocessing
    assert isinstance(other, ImagePreprocessing)
    assert (other.crop_size, other.result, other.resample) == (None, (10, 10), 3)


def test_photos_that_must_come_in_one_size(tmp_path: Path):
    known = read_normalization(write(tmp_path / "c", {"do_resize": False}))
    one = load_source(Data(source="images", train=folders(tmp_path / "a", (8, 8), (8, 8))), known)
    assert isinstance(one.preprocessing, ImagePreprocessing)
    assert not one.preprocessing.do_resize
    with pytest.raises(FleetError, match=r"image of 9 × 9 pixels does not become 8 × 8"):
        one.preprocessing.pixel_values([photo(9, 9)])
    several = folders(tmp_path / "b", (8, 8), (9, 9))
    with pytest.raises(FleetError, match=r"8 × 8 pixels, .*9 × 9; set `data.image_size`"):
        load_source(Data(source="images", train=several), known)


def test_test_images_of_another_size_are_named(tmp_path: Path):
    train, test = folders(tmp_path / "a", (8, 8)), folders(tmp_path / "b", (9, 9))
    with pytest.raises(FleetError, match=r"a/ant/0\.png has 8 × 8 pixels, .*b/ant/0\.png 9 × 9"):
        load_source(Data(source="images", train=train, test=test))


def test_floats_mean_the_same_as_bytes_by_every_factor():
    image = np.asarray(photo(6, 6))
    for factor in (1 / 255, 1 / 127.5, 1.0):
        rule = Normalization(mean=(0.3,) * 3, std=(2.0,) * 3, factor=factor)
        ours = ImagePreprocessing.of(rule, ImageSize(height=6, width=6))
        of_bytes, of_floats = ours.pixel_values([image]), ours.pixel_values([image / 255])
        torch.testing.assert_close(of_bytes, of_floats, atol=1e-4, rtol=1e-4)
