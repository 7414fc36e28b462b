"""Files of models: whole or not at all, loadable anywhere, and never trusted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import acme_fleet
from acme_fleet.device.refinement import HeaderState
from acme_fleet.errors import DamagedError, ProtocolError, RunError, WriteError
from acme_fleet.models import io
from acme_fleet.models.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES, dimensions
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header import Header, build_header, initial_tensors, prune
from acme_fleet.models.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.io import (
    CLASS_NAMES,
    CONFIG,
    DEVICE_FILES,
    HEADER,
    PREPROCESSING,
    WEIGHTS,
    backbone_from,
    clone_state,
    config_document,
    load_device_model,
    read_document,
    read_tensors,
    save_device_model,
    with_prefix,
    without_prefix,
    write_tensors,
)
from acme_fleet.models.training import Evaluation

UNEVEN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))
MakeBackbone = Callable[..., PreTrainedModel]
MakeInputs = Callable[..., dict[str, Tensor]]


def make_header(seed: int = 0) -> Header:
    """A pruned header for the features of the tiny ViT."""
    genotype = Genotype(
        blocks=(Block(inputs=(0, 1), operations=("conv3", "downsample")),), cells=2, channels=4
    )
    plan = HeaderPlan(genotype=genotype, hidden=16, classes=3, axes=2)
    header = build_header(plan, initial_tensors(plan.shapes(), torch.Generator().manual_seed(seed)))
    return prune(header, {"cell1-block0-0-conv3": (0, 3), "cell0-input0-0": (1,)})


@pytest.fixture
def device_folder(plain_backbone: MakeBackbone, tmp_path: Path) -> Path:
    header = make_header()
    model = CustomizedModel(extract(as_elastic(plain_backbone("vit")), UNEVEN), header).eval()
    folder = tmp_path / "devices" / "cam-1"
    save_device_model(folder, model, header, ["ant", "bee", "cat"], {"image_size": 8})
    return folder


# --- a device's folder ------------------------------------------------------------------------


def test_device_folder_holds_all_and_nothing_else(device_folder: Path) -> None:
    assert {path.name for path in device_folder.iterdir()} == set(DEVICE_FILES)
    assert read_document(device_folder, CLASS_NAMES) == ["ant", "bee", "cat"]
    assert read_document(device_folder, PREPROCESSING) == {"image_size": 8}
    model = load_device_model(device_folder)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert clone_state(model).keys() == load_file(device_folder / WEIGHTS).keys()


def test_loads_in_a_fresh_process_bit_for_bit(
    device_folder: Path, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    inputs = make_inputs("vit")
    logits = acme_fleet.load(device_folder)(**inputs).contiguous()
    save_file({**inputs, "logits": logits}, tmp_path / "expected")
    script = """
import sys
import acme_fleet
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)  # as here: sums in another order differ in the last bit
expected = load_file(sys.argv[2])
wanted = expected.pop("logits")
assert (acme_fleet.load(sys.argv[1])(**expected) == wanted).all()
assert "acme_fleet.cloud" not in sys.modules
"""
    arguments = [sys.executable, "-c", script, str(device_folder), str(tmp_path / "expected")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, HEADER])
@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "cut"])
def test_missing_or_damaged_file_is_named(name: str, damage: str, device_folder: Path) -> None:
    path = device_folder / name
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "binary":
            path.write_bytes(bytes(range(128, 256)))
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError) as caught:
        load_device_model(device_folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG, []),
        (CONFIG, {}),
        (CONFIG, {"model_type": "gpt2"}),
        (HEADER, []),
        (HEADER, {"genotype": 1}),
        # Fits nothing that is stored, and would take terabytes to build.
        (
            HEADER,
            {
                "genotype": {
                    "blocks": [{"inputs": [0, 1], "operations": ["conv5", "conv5"]}] * 8,
                    "cells": 8,
                    "channels": 4096,
                },
                "hidden": 65536,
                "classes": 2**20,
                "axes": 2,
                "kept": {},
            },
        ),
    ],
)
def test_files_that_do_not_fit_each_other_are_named(
    name: str, content: Any, device_folder: Path
) -> None:
    (device_folder / name).write_text(json.dumps(content))
    with pytest.raises(RunError, match=name):
        load_device_model(device_folder)


def test_a_folder_that_does_not_exist() -> None:
    with pytest.raises(RunError, match="nowhere"):
        load_device_model("nowhere")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfd"])
def test_damaged_document_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(RunError, match=r"labels\.json"):
        read_document(tmp_path, "labels.json")


# --- checkpoints ------------------------------------------------------------------------------


def test_tensors_and_description_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "stage.safetensors"
    shared = torch.randn(4, 6, requires_grad=True)
    tensors = {"turned": shared.T, "half": shared.detach()[:, ::2].half(), "one": torch.tensor(3)}
    about = {"loss": 0.1, "names": ["é", "b"], "none": None}
    write_tensors(path, tensors, about)
    read, description = read_tensors(path)
    assert description == about
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_another_programs_file_is_read_too(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "plain", metadata={"format": "pt"})
    assert read_tensors(tmp_path / "plain")[1] == {}


@pytest.mark.parametrize("metadata", [None, {}, {"about": "{}"}, {"about": "{}", "chacksum": "1"}])
def test_a_file_without_checksum_is_refused(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    """A damaged name of the checksum must not pass for a file that never had one."""
    save_file({"a": torch.ones(2)}, tmp_path / "plain", metadata=metadata)
    with pytest.raises(DamagedError, match="plain: it has no checksum: an older version"):
        read_tensors(tmp_path / "plain")


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_no_bit_of_a_checkpoint_can_change_unnoticed(place: int, bit: int) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([True]), "0": torch.empty(0)}
    about = {"step": 1, "name": "é"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stage.safetensors"
        write_tensors(path, tensors, about)
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << bit
        path.write_bytes(content)
        try:
            read, told = read_tensors(path)
        except DamagedError:
            return
    # A space in the header may become another: it says the same.
    assert told == about
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_private_checkpoint_is_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "new" / "private", {"a": torch.ones(1)}, {}, private=True)
        write_tensors(tmp_path / "open", {"a": torch.ones(1)}, {})
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in (tmp_path / "new", tmp_path / "new" / "private", tmp_path / "open")
    }
    assert modes == {"new": 0o700, "private": 0o600, "open": 0o644}


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0notjson!", b"x" * 1000])
def test_damaged_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "stage.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .*stage\.safetensors"):
        read_tensors(path)


def half_written(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """The disk is full, or the power fails."""
    Path(path).write_bytes(b"half")
    raise OSError("no space left on device")


def test_an_interrupted_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stage.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, {"step": 1})
    with monkeypatch.context() as patched:
        patched.setattr(io, "save_file", half_written)
        with pytest.raises(WriteError, match=r"cannot write .*stage\.safetensors: no space left"):
            write_tensors(path, {"a": torch.zeros(2)}, {"step": 2})
    tensors, about = read_tensors(path)
    assert about == {"step": 1}
    assert tensors["a"].tolist() == [1, 1]
    write_tensors(path, {"a": torch.zeros(2)}, {"step": 3})  # what is left over is no hindrance
    assert read_tensors(path)[1] == {"step": 3}


def test_an_interrupted_write_leaves_the_old_device_model(
    device_folder: Path,
    plain_backbone: MakeBackbone,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = load_device_model(device_folder)(**make_inputs("vit"))
    header = make_header(seed=1)
    backbone = extract(as_elastic(plain_backbone("vit", seed=1)), UNEVEN)
    model = CustomizedModel(backbone, header)
    with monkeypatch.context() as patched:
        patched.setattr(io, "save_file", half_written)
        with pytest.raises(WriteError, match=r"model\.safetensors: no space left"):
            save_device_model(device_folder, model, header, ["ant", "bee", "cat"], {})
    assert torch.equal(load_device_model(device_folder)(**make_inputs("vit")), before)


def test_prefixes() -> None:
    tensors = {"a.weight": torch.ones(1), "b": torch.zeros(1)}
    both = with_prefix("head", tensors) | with_prefix("header", tensors)
    assert set(both) == {"head.a.weight", "head.b", "header.a.weight", "header.b"}
    assert without_prefix("head", both) == tensors


def test_header_state_round_trip(tmp_path: Path) -> None:
    state = HeaderState(make_header(1), make_header(2), Evaluation(loss=0.1 + 0.2, accuracy=2 / 3))
    path = tmp_path / "state.safetensors"
    state.write(path)
    read = HeaderState.read(path)
    assert read.best_evaluation == state.best_evaluation
    for mine, theirs in ((read.current, state.current), (read.best, state.best)):
        assert mine.plan == theirs.plan
        weights = theirs.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in mine.state_dict().items())


@pytest.mark.parametrize("spoil", ["tensor", "plan", "shape", "description"])
def test_damaged_header_state_is_named(spoil: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    HeaderState(make_header(1), make_header(2), Evaluation(0.5, 0.5)).write(path)
    tensors, about = read_tensors(path)
    match spoil:
        case "tensor":
            tensors.pop("best.classifier.pooled.bias")
        case "plan":
            about["current"]["hidden"] = -1
        case "shape":
            tensors["best.classifier.pooled.bias"] = torch.zeros(9)
        case "description":
            about = {}
    write_tensors(path, tensors, about)
    with pytest.raises(RunError, match=r"state\.safetensors"):
        HeaderState.read(path)


# --- what comes from elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_from_its_description_bit_for_bit(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    """Through JSON, as a message carries it."""
    small, inputs = extract(as_elastic(plain_backbone(family)), UNEVEN), make_inputs(family)
    document = json.loads(json.dumps(config_document(small)))
    rebuilt = backbone_from(document, clone_state(small))
    assert torch.equal(rebuilt(**inputs)[0], small(**inputs)[0])
    assert not any(parameter.requires_grad for parameter in rebuilt.parameters())
    assert not rebuilt.training


@pytest.mark.timeout(120)  # a million layers would take hours
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "acme_gpt2"),
        ("model_type", None),
        ("model_type", 7),
        ("hidden_size", 10**12),
        ("hidden_size", -1),
        ("hidden_size", 17),
        ("hidden_size", "wide"),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", -1),
        ("intermediate_size", -1),
        ("heads_per_layer", [1]),
        ("heads_per_layer", [10**12, 10**12]),
        ("heads_per_layer", 3),
        ("neurons_per_layer", [7, 10**12]),
        ("neurons_per_layer", [7, -2]),
        ("neurons_per_layer", ["a", "b"]),
        ("image_size", 10**7),
        ("image_size", []),
        ("patch_size", 0),
        ("num_channels", 10**15),
        ("hidden_act", "__import__('os')"),
        ("dtype", "float128"),
        ("id2label", 5),
    ],
)
def test_hostile_configuration_is_refused_before_anything_is_allocated(
    field: str, value: Any, plain_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = extract(as_elastic(plain_backbone("vit")), UNEVEN)
    document, tensors = config_document(small) | {field: value}, clone_state(small)
    original = io.build

    def only_shapes(config: Any, device: str = "meta") -> PreTrainedModel:
        assert device == "meta", "memory was allocated"
        return original(config, device)

    monkeypatch.setattr(io, "build", only_shapes)
    with pytest.raises(ProtocolError, match=r"configuration|the backbone|unknown model type"):
        backbone_from(document, tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_width_that_no_layer_keeps_is_not_allocated(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    """Tensors that fit, and a configuration whose reference had 10¹⁵ neurons."""
    small, inputs = extract(as_elastic(plain_backbone(family)), UNEVEN), make_inputs(family)
    document = config_document(small) | {FAMILIES[family].neurons_key: 10**15}
    rebuilt = backbone_from(document, clone_state(small))
    assert config_document(rebuilt) == document
    assert torch.equal(rebuilt(**inputs)[0], small(**inputs)[0])


def test_heads_that_no_layer_keeps_are_refused(plain_backbone: MakeBackbone) -> None:
    """Tensors that fit, and a configuration whose reference had 10⁹ heads of the same size."""
    small = extract(as_elastic(plain_backbone("vit")), UNEVEN)
    hostile = {"head_dim": dimensions(small.config).head_dim, "num_attention_heads": 10**9}
    with pytest.raises(ProtocolError, match=r"attention is \d+ wide"):
        backbone_from(config_document(small) | hostile, clone_state(small))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    change: str, plain_backbone: MakeBackbone
) -> None:
    small = extract(as_elastic(plain_backbone("llama")), UNEVEN)
    tensors = clone_state(small)
    match change:
        case "missing":
            tensors.pop("norm.weight")
        case "unknown":
            tensors["backdoor"] = torch.ones(1)
        case "shape":
            tensors["norm.weight"] = torch.ones(25)
    with pytest.raises(ProtocolError, match=r"lacks norm|unknown backdoor|norm.weight has shape"):
        backbone_from(config_document(small), tensors)


def test_loading_twice_gives_the_same(device_folder: Path, tmp_path: Path) -> None:
    """A folder can be copied anywhere."""
    shutil.copytree(device_folder, tmp_path / "copy")
    first, second = load_device_model(device_folder), load_device_model(tmp_path / "copy")
    assert all(
        torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items()
    )
