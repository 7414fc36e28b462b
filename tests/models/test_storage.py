"""Tensors and configurations on disk and in messages: never trusted."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from acme_fleet.device.refinement import HeaderState
from acme_fleet.errors import DamagedError, ProtocolError, RunError, WriteError
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models import storage as io
from acme_fleet.models.backbone.configuration import WITHOUT_EFFECT, accepted
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.header.module import Header, build_header, initial_tensors, prune
from acme_fleet.models.parts import Parts
from acme_fleet.models.pooling import pool_by
from acme_fleet.models.storage import (
    backbone_from,
    clone_state,
    config_document,
    read_tensors,
    with_prefix,
    without_prefix,
    write_tensors,
)
from acme_fleet.tasks.base import Evaluation

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


def test_prefixes() -> None:
    tensors = {"a.weight": torch.ones(1), "b": torch.zeros(1)}
    both = with_prefix("head", tensors) | with_prefix("header", tensors)
    assert set(both) == {"head.a.weight", "head.b", "header.a.weight", "header.b"}
    assert without_prefix("head", both) == tensors


def test_header_state_round_trip(tmp_path: Path) -> None:
    state = HeaderState(make_header(1), make_header(2), Evaluation(0.1 + 0.2, 2, 3))
    parts = Parts(tmp_path / "work.safetensors")
    parts.write({"pruned-1": state.part()})
    read = HeaderState.of(parts.read("pruned-1"), parts.path)
    assert read.best_evaluation == state.best_evaluation
    for mine, theirs in ((read.current, state.current), (read.best, state.best)):
        assert mine.plan == theirs.plan
        weights = theirs.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in mine.state_dict().items())


@pytest.mark.parametrize("spoil", ["tensor", "plan", "shape", "description"])
def test_damaged_header_state_is_named(spoil: str, tmp_path: Path) -> None:
    tensors, about = HeaderState(make_header(1), make_header(2), Evaluation(0.5, 1, 2)).part()
    tensors, about = dict(tensors), dict(about)
    match spoil:
        case "tensor":
            tensors.pop("best.classifier.pooled.bias")
        case "plan":
            about["current"]["hidden"] = -1
        case "shape":
            tensors["best.classifier.pooled.bias"] = torch.zeros(9)
        case "description":
            about = {}
    with pytest.raises(RunError, match=r"work\.safetensors"):
        HeaderState.of((tensors, about), tmp_path / "work.safetensors")


# --- what comes from elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_from_its_description_bit_for_bit(
    family: str, hidden: int | None, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    """Through JSON, as a message carries it."""
    arch = replace(UNEVEN, hidden=hidden)
    small, inputs = extract(as_elastic(plain_backbone(family)), arch), make_inputs(family)
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
    """Tensors that fit, and a configuration whose reference had thousands of neurons or more."""
    whole = as_elastic(plain_backbone(family))
    pool_by(whole, "mean")  # without a module that pools, which keeps all of its neurons
    small, inputs = extract(whole, UNEVEN), make_inputs(family)
    key = FAMILIES[family].neurons_key
    document = config_document(small) | {key: 2**9 if key == "mlp_ratio" else 2**20}
    rebuilt = backbone_from(document, clone_state(small))
    assert config_document(rebuilt) == document
    assert torch.equal(rebuilt(**inputs)[0], small(**inputs)[0])


def test_attention_that_is_far_too_wide_is_refused(plain_backbone: MakeBackbone) -> None:
    """`acme profile` builds the reference's shape from what the configuration says."""
    small = extract(as_elastic(plain_backbone("llama")), UNEVEN)
    with pytest.raises(ProtocolError, match=r"attention is 24576 wide, hidden states are 24"):
        backbone_from(config_document(small) | {"head_dim": 4096}, clone_state(small))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_family_is_known_to_matter_or_not(family: str) -> None:
    """A key of a new transformers that decides the function must not be lost silently."""
    document = _plain_config(family)
    known = accepted(family, document, "it").keys()
    assert document.keys() - known <= WITHOUT_EFFECT | {"model_type", "_name_or_path"} | {
        "output_attentions"
    }
    assert accepted(family, document, "it") == accepted(
        family, {key: document[key] for key in known}, "it", only=True
    )


def _plain_config(family: str) -> dict[str, Any]:
    return CONFIG_MAPPING[family]().to_dict()


ORDINARY: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
    ("vit", {"hidden_size": 1280, "num_hidden_layers": 32, "image_size": [224, 224]}),
    ("vit", {"hidden_size": 6144, "num_hidden_layers": 48, "intermediate_size": 24576}),
    ("deit", {"hidden_dropout_prob": 0, "image_size": 384}),
    ("distilbert", {"dim": 768, "num_hidden_layers": 6}),
    ("llama", {"hidden_size": 4096, "vocab_size": 32000, "intermediate_size": 11008}),
    ("llama", {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128}),
    ("llama", {"rope_theta": 500000.0, "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2}, "pad_token_id": -1}),
    ("clip_vision_model", {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 336,
        "num_attention_heads": 16, "intermediate_size": 4096, "patch_size": 14}),
    ("siglip_vision_model", {"hidden_size": 1152, "num_hidden_layers": 27, "image_size": 384,
        "num_attention_heads": 16, "intermediate_size": 4304, "patch_size": 14}),
    ("roberta", {"max_position_embeddings": 514, "type_vocab_size": 1, "hidden_size": 1024}),
    ("xlm-roberta", {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}),
    ("mpnet", {"max_position_embeddings": 514, "layer_norm_eps": 1e-05}),
    ("modernbert", {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
        "global_attn_every_n_layers": 3, "hidden_size": 1024, "num_hidden_layers": 28}),
    ("mistral", {"head_dim": 128, "hidden_size": 5120, "sliding_window": None}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0] * 9, "rope_theta": 5000000.0}),
    ("qwen3", {"head_dim": 128, "hidden_size": 1024, "max_window_layers": 28}),
    ("gemma3_text", {"rope_local_base_freq": 10000, "sliding_window_pattern": 6,
        "rope_theta": 1000000, "hidden_size": 640, "query_pre_attn_scalar": 256}),
    ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 512}),
    ("qwen2", {"vocab_size": 152064, "sliding_window": 131072, "max_position_embeddings": 10**7}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), ORDINARY)
def test_ordinary_models_are_inside_the_bounds(family: str, changes: dict[str, Any]) -> None:
    accepted(family, _plain_config(family) | changes, "it")


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
