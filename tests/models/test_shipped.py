"""A device's folder: loadable anywhere, by transformers too, and never trusted."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

import acme_fleet
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.errors import AcmeError, ProtocolError, RunError, WriteError
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models import shipped
from acme_fleet.models.backbone.checkpoints import load_backbone
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.module import Header, build_header, initial_tensors, prune
from acme_fleet.models.shipped import (
    SUMS,
    TOKENIZER_CONFIG,
    parse_preprocessing,
    read_class_names,
    read_preprocessing,
    save_device_model,
)
from acme_fleet.models.storage import CLASS_NAMES, CONFIG, HEADER, PREPROCESSING, TOKENIZER, WEIGHTS

UNEVEN = Architecture(layers=(0, 1), heads=(1, 2), neurons=(7, 2))
THIN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2), hidden=6)
NAMES = ["ant", "bee", "çat"]
IMAGE_FILES = {CONFIG, WEIGHTS, HEADER, CLASS_NAMES, PREPROCESSING, SUMS}
TEXTS = ["turn the light on", "what is the weather", "sing " * 30, "sing"]
MakeBackbone = Callable[..., PreTrainedModel]
MakeInputs = Callable[..., dict[str, Tensor]]


def make_header(axes: Any, hidden: int = 16, seed: int = 0) -> Header:
    """A pruned header for three classes."""
    block = Block(inputs=(0, 1), operations=("conv3", "downsample"))
    genotype = Genotype(blocks=(block,), cells=2, channels=4)
    plan = HeaderPlan(genotype=genotype, hidden=hidden, classes=3, axes=axes)
    header = build_header(plan, initial_tensors(plan.shapes(), torch.Generator().manual_seed(seed)))
    return prune(header, {"cell1-block0-0-conv3": (0, 3), "cell0-input0-0": (1,)})


def ship_images(folder: Path, backbone: PreTrainedModel, seed: int = 0) -> Path:
    header = make_header(2, seed=seed)
    model = CustomizedModel(extract(as_elastic(backbone), UNEVEN), header).eval()
    channels = backbone.config.num_channels
    rule = ImagePreprocessing.centred(8, 8, channels)
    save_device_model(folder, model, header, NAMES, rule, ["ant", "çat"])
    return folder


@pytest.fixture(scope="module")
def image_folder(plain_backbone: MakeBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "devices" / "cam-1"
    return ship_images(folder, plain_backbone("vit"))


@pytest.fixture(scope="module")
def text_folder(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "speaker-1"
    backbone = extract(load_backbone(text_checkpoint), UNEVEN)
    header = make_header(1, backbone.config.hidden_size)
    rule = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    save_device_model(folder, CustomizedModel(backbone, header), header, NAMES, rule, NAMES)
    return folder


@pytest.fixture
def copy(image_folder: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage, without its checksums: what lies below them is tested."""
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    (folder / SUMS).unlink()
    return folder


def pixels(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# --- what is in it ----------------------------------------------------------------------------


def test_folder_holds_all_and_nothing_else(image_folder: Path, text_folder: Path) -> None:
    assert {path.name for path in image_folder.iterdir()} == IMAGE_FILES
    texts = {path.name for path in text_folder.iterdir()}
    assert texts == IMAGE_FILES | {TOKENIZER, TOKENIZER_CONFIG}
    assert json.loads((image_folder / CLASS_NAMES).read_text()) == NAMES
    assert read_class_names(image_folder) == NAMES
    config = json.loads((image_folder / CONFIG).read_text())
    assert config["id2label"] == {"0": "ant", "1": "bee", "2": "çat"}
    assert config["label2id"] == {"ant": 0, "bee": 1, "çat": 2}
    assert config["trained_classes"] == ["ant", "çat"]
    assert read_preprocessing(image_folder) == ImagePreprocessing.centred(8, 8, 1)


def test_checksums_are_those_of_sha256sum(text_folder: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    done = subprocess.run(command, cwd=text_folder, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_all_files_are_readable_like_their_neighbours(
    text_folder: Path, plain_backbone: MakeBackbone, tmp_path: Path
) -> None:
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(text_folder)
    loaded.save_pretrained(tmp_path / "again")
    before = os.umask(0o027)
    try:
        ship_images(tmp_path / "group", plain_backbone("vit"))
    finally:
        os.umask(before)
    expected = {text_folder: 0o666 & ~before, tmp_path / "again": 0o666 & ~before}
    for folder, mode in {**expected, tmp_path / "group": 0o640}.items():
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_no_file_names_a_place_on_the_machine_that_made_it(
    text_folder: Path, image_folder: Path, text_checkpoint: Path
) -> None:
    places = [str(text_checkpoint.parent), str(Path.home()), "/tmp/", str(Path(sys.prefix))]
    for path in [*text_folder.iterdir(), *image_folder.iterdir()]:
        content = path.read_bytes()
        assert not [place for place in places if place.encode() in content], path.name


def test_an_interrupted_write_leaves_the_old_model(
    plain_backbone: MakeBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ship_images(tmp_path / "cam", plain_backbone("vit"))
    before = acme_fleet.load(folder)(pixels())

    def half_written(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shipped, "save_file", half_written)
        with pytest.raises(WriteError, match="no space left"):
            ship_images(folder, plain_backbone("vit", seed=1), seed=1)
    assert torch.equal(acme_fleet.load(folder)(pixels()), before)
    assert {path.name for path in folder.iterdir()} == IMAGE_FILES


# --- acme_fleet.load --------------------------------------------------------------------------


def test_loads_by_name_and_by_position(image_folder: Path, text_folder: Path) -> None:
    model = acme_fleet.load(image_folder)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == load_file(image_folder / WEIGHTS).keys()
    assert torch.equal(model(pixels()), model(pixel_values=pixels()))
    texts = acme_fleet.load(text_folder)
    inputs = read_preprocessing(text_folder).inputs(TEXTS)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert torch.equal(texts(ids, mask), texts(**inputs))
    assert texts(ids).shape == (4, 3)
    with pytest.raises(TypeError):
        model(images=pixels())


def test_loads_in_a_fresh_process_bit_for_bit(
    image_folder: Path, plain_backbone: MakeBackbone, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """Wherever it was copied to, with what transformers gives to who imports acme_fleet alone.

    Backbones of all families too.
    """
    shutil.copytree(image_folder, tmp_path / "copy")
    logits = acme_fleet.load(image_folder)(pixels()).contiguous()
    save_file({"pixels": pixels(), "logits": logits}, tmp_path / "expected")
    for family in FAMILIES:
        small = extract(as_elastic(plain_backbone(family)), THIN)
        small.save_pretrained(tmp_path / family)
        states = small(**make_inputs(family)).last_hidden_state.detach().contiguous()
        save_file(make_inputs(family) | {"expected": states}, tmp_path / f"{family}.inputs")
    script = """
import sys
import acme_fleet
assert not {"torch", "transformers"} & sys.modules.keys()
from transformers import pipeline  # its own import comes upon the Auto classes half-way
from transformers import AutoModel, AutoModelForImageClassification
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)  # as here: sums in another order differ in the last bit
expected = load_file(sys.argv[2])
auto = AutoModelForImageClassification.from_pretrained(sys.argv[1])
assert (auto(expected["pixels"]).logits == expected["logits"]).all()
assert (acme_fleet.load(sys.argv[1])(expected["pixels"]) == expected["logits"]).all()
assert "acme_fleet.cloud" not in sys.modules
for family in sys.argv[3:]:
    inputs = load_file(f"{family}.inputs")
    wanted = inputs.pop("expected")
    assert (AutoModel.from_pretrained(family).eval()(**inputs).last_hidden_state == wanted).all()
"""
    families = [str(tmp_path / family) for family in FAMILIES]
    run_alone(script, str(tmp_path / "copy"), str(tmp_path / "expected"), *families)


def run_alone(script: str, *arguments: str) -> None:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- transformers -----------------------------------------------------------------------------


def test_registers_also_when_transformers_is_imported_first(image_folder: Path) -> None:
    script = """
import sys
from transformers import AutoConfig
import acme_fleet
assert AutoConfig.from_pretrained(sys.argv[1]).trained_classes == ["ant", "çat"]
"""
    run_alone(script, str(image_folder))


def test_auto_class_gives_the_devices_model_of_images(image_folder: Path) -> None:
    auto, info = hf.AutoModelForImageClassification.from_pretrained(
        image_folder, output_loading_info=True
    )
    assert not any(info.values())
    assert not auto.training
    labels = torch.tensor([0, 1, 2, 0])
    output = auto(pixels(), labels=labels)
    own = acme_fleet.load(image_folder)(pixels())
    assert torch.equal(output.logits, own)
    assert torch.equal(
        output.loss, torch.nn.functional.cross_entropy(own, torch.tensor([0, 1, 2, 0]))
    )
    assert auto.config.id2label == dict(enumerate(NAMES))
    assert auto.config.label2id["bee"] == 1
    assert all(parameter.requires_grad for parameter in auto.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 21])
def test_processor_and_pipeline_of_images(
    channels: int, size: int, plain_backbone: MakeBackbone, tmp_path: Path
) -> None:
    """Grey or in colour, of the model's size or of another: as `acme predict` does."""
    backbone = plain_backbone("vit")
    if channels == 3:
        backbone = hf.ViTModel(
            hf.ViTConfig.from_dict({**backbone.config.to_dict(), "num_channels": 3}),
            add_pooling_layer=False,
        )
    folder = ship_images(tmp_path / "cam", backbone)
    values = np.random.default_rng(0).integers(0, 256, (2, size, size, channels), np.uint8)
    images = [Image.fromarray(value.squeeze()) for value in values]
    rule, processor = read_preprocessing(folder), hf.AutoImageProcessor.from_pretrained(folder)
    expected = rule.inputs(images)["pixel_values"]
    for given_images in (images, [image.convert("RGB") for image in images]):
        batch = processor(given_images, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected)
    assert torch.equal(processor(images[0])["pixel_values"], expected[:1])
    probabilities = acme_fleet.load(folder)(expected).softmax(dim=1)
    told = hf.pipeline("image-classification", model=str(folder))(images)
    for one, row in zip(told, probabilities, strict=True):
        assert one[0]["label"] == NAMES[int(row.argmax())]
        assert one[0]["score"] == pytest.approx(float(row.max()), abs=1e-6)  # one by one: rounded
    processor.save_pretrained(tmp_path / "saved")
    saved = hf.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(images)["pixel_values"], expected)


def test_tokenizer_and_pipeline_of_texts(text_folder: Path) -> None:
    """Long texts are cut and short ones padded by default."""
    expected = read_preprocessing(text_folder).inputs(TEXTS)
    tokenizer = hf.AutoTokenizer.from_pretrained(text_folder)
    batch = tokenizer(TEXTS, return_tensors="pt")
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(batch[name], values)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (8, "right")
    special = (tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token)
    assert special == ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert len(tokenizer("sing", padding=False, truncation=False)["input_ids"]) == 3
    alone = Tokenizer.from_file(str(text_folder / TOKENIZER)).encode_batch(TEXTS)
    assert [one.ids for one in alone] == expected["input_ids"].tolist()
    assert [one.attention_mask for one in alone] == expected["attention_mask"].tolist()

    auto = hf.AutoModelForSequenceClassification.from_pretrained(text_folder)
    own = acme_fleet.load(text_folder)(**expected)
    assert torch.equal(auto(**batch).logits, own)
    told = hf.pipeline("text-classification", model=str(text_folder))(TEXTS)
    for one, row in zip(told, own.softmax(dim=1), strict=True):
        assert one["label"] == NAMES[int(row.argmax())]
        assert one["score"] == pytest.approx(float(row.max()), abs=1e-6)


def test_saved_again_it_is_the_same(image_folder: Path, tmp_path: Path) -> None:
    auto = hf.AutoModelForImageClassification.from_pretrained(image_folder)
    auto.save_pretrained(tmp_path / "a")
    for folder in (image_folder, tmp_path / "a"):
        assert (folder / CONFIG).read_text() == (image_folder / CONFIG).read_text()
        assert (folder / WEIGHTS).read_bytes() == (image_folder / WEIGHTS).read_bytes()
    with torch.no_grad():
        auto.header.classifier["pooled"].bias.add_(1)
    auto.save_pretrained(tmp_path / "a")  # over what is there
    assert torch.equal(acme_fleet.load(tmp_path / "a")(pixels()), auto(pixels()).logits)
    half = hf.AutoModelForImageClassification.from_pretrained(image_folder, dtype=torch.float16)
    assert half.dtype == torch.float16
    half.save_pretrained(tmp_path / "b")
    assert acme_fleet.load(tmp_path / "b")(pixels()).dtype == torch.float32


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"])
def test_other_auto_classes_refuse(name: str, image_folder: Path, text_folder: Path) -> None:
    for folder, right in (
        (image_folder, "AutoModelForImageClassification"),
        (text_folder, "AutoModelForSequenceClassification"),
    ):
        with pytest.raises(RunError, match=f"load it with {right} or acme_fleet.load"):
            getattr(hf, name).from_pretrained(folder)
    with pytest.raises(RunError, match="load it with"):
        hf.AutoModelForSequenceClassification.from_pretrained(image_folder)
    with pytest.raises(RunError, match="use AutoModelForImageClassification"):
        hf.AutoModel.from_config(hf.AutoConfig.from_pretrained(image_folder))


def test_options_that_it_does_not_have_are_refused(image_folder: Path) -> None:
    with pytest.raises(TypeError, match="no option ignore_mismatched_sizes"):
        hf.AutoModelForImageClassification.from_pretrained(
            image_folder, ignore_mismatched_sizes=True
        )
    processor = hf.AutoImageProcessor.from_pretrained(image_folder)
    with pytest.raises(TypeError, match="no option do_resize"):
        processor(Image.new("L", (8, 8)), do_resize=False)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_tensors_that_do_not_match_never_become_random(
    change: str, copy: Path, plain_backbone: MakeBackbone, tmp_path: Path
) -> None:
    """Of a device's folder, and of a backbone that was saved alone."""
    extract(as_elastic(plain_backbone("vit")), UNEVEN).save_pretrained(tmp_path / "small")
    for folder, loader in (
        (copy, hf.AutoModelForImageClassification),
        (tmp_path / "small", hf.AutoModel),
    ):
        tensors = load_file(folder / WEIGHTS)
        name = sorted(tensors)[0]
        match change:
            case "missing":
                del tensors[name]
            case "unexpected":
                tensors["backbone.more"] = torch.ones(1)
            case "mismatched":
                tensors[name] = torch.ones(3, 3)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(AcmeError, match=r"do not fit|disagrees|cannot use"):
            loader.from_pretrained(folder)


# --- hostile folders --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(IMAGE_FILES))
@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "cut", "flipped", "pipe"])
def test_missing_or_damaged_file_is_named(
    name: str, damage: str, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "binary":
            path.write_bytes(bytes(range(128, 256)))
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        case "pipe":
            os.mkfifo(path)
    if (name, damage) == (SUMS, "missing"):  # as of a folder that another program saved
        acme_fleet.load(folder)
        return
    with pytest.raises(RunError) as caught:
        acme_fleet.load(folder)
    assert str(folder) in str(caught.value)
    assert name == SUMS or str(path) in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, HEADER, CLASS_NAMES])
def test_a_file_of_another_device_is_refused(
    name: str, image_folder: Path, plain_backbone: MakeBackbone, tmp_path: Path
) -> None:
    """Of the same shape: only the checksums can tell."""
    other = ship_images(tmp_path / "other", plain_backbone("vit", seed=1), seed=1)
    (other / CLASS_NAMES).write_text('["ant", "çat", "bee"]')
    (other / CONFIG).write_text((other / CONFIG).read_text().replace("1e-12", "1e-05"))
    (other / HEADER).write_text((other / HEADER).read_text().replace("conv3", "conv1"))
    folder = tmp_path / "mixed"
    shutil.copytree(image_folder, folder)
    shutil.copy(other / name, folder / name)
    with pytest.raises(RunError, match=f"{name} is damaged or another model's"):
        acme_fleet.load(folder)


def test_a_header_of_another_plan_is_refused_without_checksums(copy: Path) -> None:
    plan = json.loads((copy / HEADER).read_text())
    plan["kept"] = {}
    (copy / HEADER).write_text(json.dumps(plan))
    with pytest.raises(RunError, match=r"header\.json is not the header that config"):
        acme_fleet.load(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.fill_(float("nan")), "holds values that are not finite"),
        (lambda t: t.fill_(float("-inf")), "holds values that are not finite"),
        (lambda t: t.half(), "is of type float16, other weights are of another"),
        (lambda t: t.double(), "is of type float64, weights are"),
        (lambda t: t.to(torch.int32), "is of type int32, weights are floating-point"),
        (lambda t: t.to(torch.complex64), "is of type complex64"),
    ],
)
@pytest.mark.parametrize(
    "name", ["backbone.layers.0.mlp.fc1.bias", "header.classifier.pooled.weight"]
)
def test_weights_that_cannot_be_meant_are_named(
    name: str, change: Callable[[Tensor], Tensor], words: str, copy: Path
) -> None:
    tensors = load_file(copy / WEIGHTS)
    save_file({**tensors, name: change(tensors[name])}, copy / WEIGHTS)
    with pytest.raises(RunError, match=f"{name} {words}"):
        acme_fleet.load(copy)


@pytest.mark.parametrize("stranger", ["backdoor", "backbone.layers.9.x", "header.more", "head.er"])
def test_extra_tensors_are_named(stranger: str, copy: Path) -> None:
    save_file({**load_file(copy / WEIGHTS), stranger: torch.ones(2)}, copy / WEIGHTS)
    with pytest.raises(RunError, match="unknown "):
        acme_fleet.load(copy)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_opened(copy: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "opened"))
    (copy / WEIGHTS).write_bytes(bomb)
    (copy / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(RunError, match=r"cannot read .*safetensors"):
        acme_fleet.load(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(RunError, match=r"cannot read .*safetensors"):
        acme_fleet.load(copy)
    assert not (tmp_path / "opened").exists()


DEEP = "[" * 100_000 + "]" * 100_000
HUGE_PLAN = {
    "genotype": {
        "blocks": [{"inputs": [0, 1], "operations": ["conv5", "conv5"]}] * 8,
        "cells": 8,
        "channels": 4096,
    },
    "hidden": 65536,
    "classes": 3,
    "axes": 2,
    "kept": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "acme_vit"},
        {"model_type": 7},
        {"model_type": None},
        {"header": HUGE_PLAN},
        {"header": []},
        {"header": {"genotype": 1}},
        {"id2label": {}},
        {"id2label": {"0": "a", "1": "b", "3": "c"}},
        {"id2label": {"0": 1, "1": 2, "2": 3}},
        {"id2label": ["a", "b", "c"]},
        {"trained_classes": ["dog"]},
        {"trained_classes": "ant"},
        {"backbone": {}},
        {"backbone": []},
    ],
)
def test_a_description_that_makes_no_sense_is_named(change: dict[str, Any], copy: Path) -> None:
    (copy / HEADER).unlink()
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(RunError, match=r"config\.json"):
        acme_fleet.load(copy)


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 50_000, "[]", "null", '"x"', "9" * 5000])
def test_a_document_that_is_no_description_is_named(content: str, copy: Path) -> None:
    (copy / CONFIG).write_text(content)
    with pytest.raises(RunError, match=r"config\.json"):
        acme_fleet.load(copy)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: there is no such folder"):
        acme_fleet.load("nowhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(RunError, match="no such folder"):
        acme_fleet.load(tmp_path / "dangling")


@given(data=st.data())
@settings(max_examples=60)
def test_any_bytes_give_the_same_model_or_a_clear_error(
    data: st.DataObject, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some bytes of one file are others, or missing, or too many; with and without checksums."""
    folder = tmp_path_factory.mktemp("mutated", numbered=True) / "cam"
    shutil.copytree(image_folder, folder)
    summed = data.draw(st.booleans())
    if not summed:
        (folder / SUMS).unlink()
    path = folder / data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    whole = path.read_bytes()
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, min(len(whole), begin + 8)))
    path.write_bytes(whole[:begin] + data.draw(st.binary(max_size=8)) + whole[end:])
    try:
        model = acme_fleet.load(folder)
    except RunError:
        return
    logits = model(pixels(1))
    assert logits.shape == (1, 3)
    if summed:
        assert torch.equal(logits, acme_fleet.load(image_folder)(pixels(1)))


@pytest.mark.parametrize(
    "document",
    [{}, {"image_size": 8}, {"tokenizer": 3, "max_tokens": 2, "pad_id": 0}, {"tokenizer": {}}],
)
def test_preprocessing_that_is_none_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="what was sent: "):
        parse_preprocessing(document, "what was sent")
