"""Configurations that lie: refused by name, whatever they say, without much memory or time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.errors import FleetError, ProtocolError
from acme_fleet.models.backbone.configuration import accepted, checked_names
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.storage import backbone_from, clone_state, config_document

UNEVEN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))
MakeBackbone = Callable[..., PreTrainedModel]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


HOSTILE: dict[str, Any] = {
    "num_labels": 10**9,
    "hidden_size": 10**9,
    "num_attention_heads": -1,
    "num_hidden_layers": 2.0,
    "intermediate_size": True,
    "vocab_size": 10**4000,
    "initializer_range": float("nan"),
    "layer_norm_eps": float("inf"),
    "hidden_act": "gelu_of_another_world",
    "layer_types": ["full_attention"] * 10**6,
    "heads_per_layer": [1] * 10**6,
    "neurons_per_layer": [[1], [1]],
    "rope_scaling": {"rope_type": "default", "factor": nested(50)},
    "rope_parameters": {"rope_type": "llama3", "long_factor": [1.0] * 10**6},
    "id2label": {str(n): "x" for n in range(10**5)},
    "torch_dtype": "float4",
    "dtype": "float64",
    "auto_map": {"AutoModel": "evil.Model"},
    "quantization_config": {"load_in_4bit": True},
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "evil/kernels",
    "per_layer_config": {"0": {"hidden_size": 10**9}},
    "output_hidden_states": True,
    "sub_configs": nested(10**5),
    "__class__": "x",
}


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("family", ["vit", "llama"])
def test_hostile_value_is_refused_by_name(
    family: str, key: str, plain_backbone: MakeBackbone
) -> None:
    small = extract(as_elastic(plain_backbone(family)), UNEVEN)
    with pytest.raises(ProtocolError) as caught:
        backbone_from(config_document(small) | {key: HOSTILE[key]}, clone_state(small))
    assert key in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.timeout(300)
def test_memory_stays_bounded_whatever_a_configuration_asks_for(
    plain_backbone: MakeBackbone,
) -> None:
    """In a process that may not take a gigabyte more than what the library takes to start."""
    cases = []
    for family in ("vit", "llama"):
        small = extract(as_elastic(plain_backbone(family)), UNEVEN)
        shapes = {name: list(value.shape) for name, value in small.state_dict().items()}
        document = config_document(small)
        for key, value in HOSTILE.items():
            if not isinstance(value, dict) or key != "sub_configs":
                cases.append((document | {key: value}, shapes))
        # Sizes that are each within bounds, far beyond what the tensors bear out.
        big = {"hidden_size": 2**16, "intermediate_size": 2**20, "vocab_size": 2**24}
        for key in big.keys() & document.keys():
            cases.append((document | {key: big[key]}, shapes))
        cases.append((document | {key: big[key] for key in big.keys() & document.keys()}, shapes))
    script = """
import json, resource, sys
import torch
from acme_fleet.errors import ProtocolError
from acme_fleet.models.storage import backbone_from
cases = json.load(sys.stdin)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
for document, shapes in cases:
    try:
        backbone_from(document, {name: torch.zeros(shape) for name, shape in shapes.items()})
    except ProtocolError:
        continue
    if document.keys() & {"num_labels", "quantization_config", "auto_map"}:
        sys.exit(f"not refused: {document}"[:500])
"""
    command = [sys.executable, "-c", script]
    given_to = json.dumps(cases)
    done = subprocess.run(command, input=given_to, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_wide_attention_is_not_allocated_for_narrow_tensors() -> None:
    """Every tensor fits, and the reference's layers would have taken hundreds of gigabytes."""
    hidden = 2**15
    document = {
        **{"model_type": "acme_vit", "hidden_size": hidden, "num_attention_heads": 2**10},
        **{"num_hidden_layers": 1, "intermediate_size": 2**20, "heads_per_layer": [1]},
        **{"neurons_per_layer": [1], "image_size": 2, "patch_size": 2, "num_channels": 1},
    }
    skeleton = _skeleton(document)
    tensors = {name: torch.zeros(value.shape) for name, value in skeleton.state_dict().items()}
    assert sum(value.numel() for value in tensors.values()) < 10**7
    rebuilt = backbone_from(document, tensors)
    assert rebuilt(pixel_values=torch.zeros(1, 1, 2, 2))[0].shape == (1, 2, hidden)


def _skeleton(document: dict[str, Any]) -> PreTrainedModel:
    from acme_fleet.models.backbone.elastic import build
    from acme_fleet.models.families import ELASTIC

    return build(ELASTIC["vit"][0].from_dict(document))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 9), max_size=3),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "other"]), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), st.integers(0, 9), max_size=2),
    st.sampled_from(["relu", "silu", "default", "yarn", "linear"]),
)


@pytest.fixture(scope="module")
def small_ones(plain_backbone: MakeBackbone) -> dict[str, PreTrainedModel]:
    return {name: extract(as_elastic(plain_backbone(name)), UNEVEN) for name in FAMILIES}


@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
@settings(max_examples=75)
def test_a_mutated_configuration_is_refused_or_works(
    data: st.DataObject,
    family: str,
    small_ones: dict[str, PreTrainedModel],
    make_inputs: Callable[..., dict[str, Tensor]],
) -> None:
    small = small_ones[family]
    document = config_document(small)
    keys = st.sampled_from([*sorted(document), "rope_scaling", "num_labels", "head_dim", "x"])
    changes = data.draw(st.dictionaries(keys, VALUES, max_size=3))
    dropped = data.draw(st.sets(st.sampled_from(sorted(document)), max_size=1))
    mutated = {key: value for key, value in document.items() if key not in dropped} | changes
    try:
        rebuilt = backbone_from(mutated, clone_state(small))
    except ProtocolError:
        return
    inputs = make_inputs(family)
    assert rebuilt(**inputs)[0].shape == small(**inputs)[0].shape


def test_of_a_checkpoint_other_keys_are_left_out() -> None:
    document = {"hidden_size": 8, "_attn_implementation": "flash_attention_2", "of_2031": nested(9)}
    assert accepted("vit", document, "it") == {"hidden_size": 8}
    assert accepted("distilbert", {"hidden_size": 8, "dim": 8}, "it") == {"dim": 8}
    with pytest.raises(FleetError, match="dim and"):
        accepted("distilbert", {"hidden_size": 8, "dim": 9}, "it")
    with pytest.raises(FleetError, match=r"it: hidden_size: .*less than or equal to 65536"):
        accepted("vit", {"hidden_size": 10**9}, "it")


def test_a_square_in_two_numbers_is_one() -> None:
    document = {"image_size": [224, 224], "patch_size": (16, 16)}
    assert accepted("vit", document, "it") == {"image_size": 224, "patch_size": 16}
    with pytest.raises(FleetError, match=r"it: image_size: .* \(got a list of 2\)"):
        accepted("vit", {"image_size": [224, 192]}, "it")


@pytest.mark.parametrize(
    "document",
    [
        {"num_labels": 10**9},
        {"num_labels": -1},
        {"num_labels": "many"},
        {"id2label": ["cat"]},
        {"id2label": {"1": "cat"}},
        {"id2label": {"0": 7}},
        {"id2label": {str(n): "x" for n in range(100_001)}},
    ],
)
def test_class_names_that_make_no_sense(document: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match=r"it: (num_labels|id2label): "):
        checked_names(document, "it")


def test_class_names_in_the_order_of_their_numbers() -> None:
    assert checked_names({"id2label": {"1": "b", "0": "a"}, "num_labels": 2}, "it") == ["a", "b"]
    assert checked_names({}, "it") == checked_names({"num_labels": 1000}, "it") == []
