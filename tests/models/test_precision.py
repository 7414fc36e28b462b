"""Precisions: sizes of written files, rounding, and inference as a runtime computes it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.cloud.objectives import Grid, candidate_sizes
from acme_fleet.config.devices import Precision
from acme_fleet.config.header import Header as HeaderSettings
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.cost.variant import Variant
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.header_plan import HeaderPlan, smallest_genotype
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, build, extract, subnetwork
from acme_fleet.models.backbone.precision import (
    Int8Linear,
    pack,
    rounded,
    unpack,
    use_precision,
)
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import Classifier, CustomizedModel, activations
from acme_fleet.models.header.module import Header
from acme_fleet.models.shipped import save_device_model
from acme_fleet.models.storage import backbone_from, config_document, stored_weights, with_prefix

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
UNEVEN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_size_of_a_written_backbone(
    family: str,
    precision: Precision,
    plain_backbone: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    """From the reference's configuration alone: no weights, and no module for the sub-network."""
    elastic = as_elastic(plain_backbone(family))
    views = subnetwork(build(elastic.config).state_dict(), elastic.config, UNEVEN)
    assert all(view.is_meta for view in views.values())
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    path, small = tmp_path / "model", extract(elastic, UNEVEN)
    save_file(pack(small.state_dict(), precision), path, {"format": "pt"})
    assert file_size(shapes, precision) == path.stat().st_size
    assert shapes == shapes_of(small)
    small.load_state_dict(unpack(load_file(path), shapes))


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_candidate_sizes_are_those_of_the_files(
    family: str, make_classifier: Callable[..., Classifier], tmp_path: Path
) -> None:
    """Of the folder that ships, for every precision."""
    elastic, settings = ElasticClassifier(make_classifier(family)), HeaderSettings(channels=5)
    cuts = (Variant(0.25, 1), Variant(0.5, 3), Variant(1.0, 2, 0.5))
    grid = Grid(tuple(cut.at(precision) for cut in cuts for precision in PRECISIONS))
    for variant, size in zip(grid.variants, candidate_sizes(elastic, grid, settings), strict=True):
        backbone = elastic.extract(elastic.shape(variant))
        hidden = backbone.config.hidden_size
        plan = HeaderPlan(genotype=smallest_genotype(2, 1, 5), hidden=hidden, classes=4, axes=2)
        header = Header(plan)
        model, rule = CustomizedModel(backbone, header), ImagePreprocessing.centred(8, 8, 3)
        save_device_model(tmp_path, model, header, list("abcd"), rule, ["a"])
        assert (tmp_path / "model.safetensors").stat().st_size == size


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e20]),
    st.integers(0, 99),
)
def test_int8_is_right_to_half_a_step(shape: tuple[int, ...], scale: float, seed: int) -> None:
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    packed = pack({"a.weight": weight, "a.bias": weight}, "int8")
    found = unpack(packed, {"a.weight": shape, "a.bias": shape})
    assert torch.equal(found["a.bias"], weight)
    if weight.ndim == 1:
        assert torch.equal(found["a.weight"], weight)
        return
    assert packed["a.weight"].dtype == torch.int8
    steps = packed["a.weight_scale"].view(-1, *[1] * (weight.ndim - 1))
    assert bool(((found["a.weight"] - weight).abs() <= 0.5001 * steps).all())
    assert not found["a.weight"][0].any()


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_int4_is_right_to_a_step(rows: int, columns: int, seed: int) -> None:
    """To half a step, and to a whole one at the end that a group's largest value is not on."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    packed = pack({"a.weight": weight}, "int4")
    found = unpack(packed, {"a.weight": (rows, columns)})["a.weight"]
    steps = packed["a.weight_scale"].float().abs().repeat_interleave(32, dim=1)[:, :columns]
    off = (found - weight).abs() / steps
    assert float(off.max()) <= 1.01
    assert bool((off[(weight / steps).abs() < 7.4] <= 0.501).all())
    assert packed["a.weight"].nbytes == rows * -(-columns // 32) * 16


@given(
    st.sampled_from(PRECISIONS),
    st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple),
    st.sampled_from([0.0, 1e-9, 1e-5, 1.0, 1e3]),
    st.integers(0, 99),
)
def test_packing_again_gives_the_same_bytes(
    precision: Precision, shape: tuple[int, ...], scale: float, seed: int
) -> None:
    """A model that was loaded and is saved again is the same file."""
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    first = pack({"a.weight": weight}, precision)
    again = pack(unpack(first, {"a.weight": shape}), precision)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("precision", ["int4", "int8", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_ships_answers_as_the_candidate_was_measured(
    family: str,
    precision: Precision,
    make_classifier: Callable[..., Classifier],
    make_inputs: Callable[..., dict[str, Tensor]],
) -> None:
    """A candidate is a view, then a cut backbone, then a message, and on the device a model."""
    elastic, inputs = ElasticClassifier(make_classifier(family)), make_inputs(family)
    arch = elastic.shape(Variant(0.5, 2, precision=precision))
    measured = elastic.run(arch, inputs).activations.pooled
    cut = elastic.extract(arch)
    received = backbone_from(config_document(cut), stored_weights(cut))
    for backbone in (cut, received):
        torch.testing.assert_close(activations(backbone, inputs).pooled, measured)
    plain = elastic.run(replace(arch, precision="float32"), inputs).activations.pooled
    assert not torch.allclose(plain, measured, atol=1e-7)
    assert cut.config.precision == received.config.precision == precision


def test_views_are_not_rounded_in_place(make_classifier: Callable[..., Classifier]) -> None:
    elastic = ElasticClassifier(make_classifier("vit"))
    before = {name: value.clone() for name, value in elastic.classifier.state_dict().items()}
    elastic.extract(elastic.shape(Variant(0.5, 2, precision="int4")))
    after = elastic.classifier.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_device_without_whole_numbers_is_refused(
    precision: Precision, make_classifier: Callable[..., Classifier]
) -> None:
    elastic = ElasticClassifier(make_classifier("vit"))
    cut = elastic.extract(elastic.shape(Variant(0.5, 2, precision=precision)))
    tensors, document = stored_weights(cut), config_document(cut)
    name = next(name for name in tensors if not tensors[name].is_floating_point())
    with pytest.raises(ProtocolError, match=f"{name} is torch.float32, expected torch"):
        backbone_from(document, tensors | {name: tensors[name].float()})
    with pytest.raises(ProtocolError, match="unknown"):
        backbone_from(document | {"precision": "float32"}, tensors)


# --- against ONNX Runtime ---------------------------------------------------------------------


def _by_runtime(nodes: list[Any], constants: dict[str, Any], x: Tensor) -> Tensor:
    """A graph's output ``y`` of the input ``x``."""
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def _linear(rows: int = 24, columns: int = 64) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(columns, rows), torch.randn(3, 5, columns)


def test_int8_is_what_whole_numbers_give_in_onnx_runtime() -> None:
    """MatMulInteger on inputs that were rounded token by token; simulated in float32."""
    linear, x = _linear()
    packed = pack(with_prefix("a", linear.state_dict()), "int8")
    node = onnx.helper.make_node
    nodes = [
        node("Abs", ["x"], ["magnitude"]),
        node("ReduceMax", ["magnitude", "last"], ["largest"], keepdims=1),
        node("Div", ["largest", "127"], ["scale"]),
        node("Div", ["x", "scale"], ["scaled"]),
        node("Round", ["scaled"], ["rounded"]),
        node("Cast", ["rounded"], ["numbers"], to=onnx.TensorProto.INT8),
        node("MatMulInteger", ["numbers", "weight"], ["sums"]),
        node("Cast", ["sums"], ["real"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["real", "scale"], ["times"]),
        node("Mul", ["times", "weight_scale"], ["product"]),
        node("Add", ["product", "bias"], ["y"]),
    ]
    constants = {
        "last": np.array([-1], np.int64),
        "127": np.array(127, np.float32),
        "weight": packed["a.weight"].T.contiguous().numpy(),
        "weight_scale": packed["a.weight_scale"].numpy(),
        "bias": packed["a.bias"].numpy(),
    }
    model = nn.Sequential(linear)
    model.load_state_dict(rounded(model.state_dict(), "int8"))
    use_precision(model, "int8")
    assert isinstance(model[0], Int8Linear)
    torch.testing.assert_close(model(x), _by_runtime(nodes, constants, x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(x), linear(x), atol=1e-4)  # inputs are rounded too


def test_grouped_int8_is_what_matmulnbits_gives_in_onnx_runtime() -> None:
    """One channel is hundreds of times the others, as in decoders: its group alone suffers."""
    linear, x = _linear(columns=256)
    x[..., 7] *= 300
    packed = pack(with_prefix("a", linear.state_dict()), "int8")
    rows, columns = linear.weight.shape
    sizes = {"K": columns, "N": rows, "bits": 8, "block_size": 32, "accuracy_level": 4}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "weight", "scale"], ["product"], domain="com.microsoft", **sizes
    )
    weight = packed["a.weight"].to(torch.int16) + 128
    constants = {
        "weight": weight.to(torch.uint8).reshape(rows, columns // 32, 32).numpy(),
        "scale": packed["a.weight_scale"][:, None].repeat(1, columns // 32).numpy(),
        "bias": packed["a.bias"].numpy(),
    }
    found = _by_runtime(
        [node, onnx.helper.make_node("Add", ["product", "bias"], ["y"])], constants, x
    )
    exact, by_token, grouped = (nn.Sequential(copy.deepcopy(linear)) for _ in range(3))
    for model in (exact, by_token, grouped):
        model.load_state_dict(rounded(model.state_dict(), "int8"))
    use_precision(by_token, "int8")
    use_precision(grouped, "int8", groups=True)
    torch.testing.assert_close(grouped(x), found, atol=1e-3, rtol=1e-5)
    off = [(model(x) - exact(x)).abs().mean() for model in (grouped, by_token)]
    assert 0 < off[0] < 0.5 * off[1]


def test_int4_is_what_matmulnbits_gives_in_onnx_runtime() -> None:
    linear, x = _linear()
    packed = pack(with_prefix("a", linear.state_dict()), "int4")
    rows, columns = linear.weight.shape
    sizes = {"K": columns, "N": rows, "bits": 4, "block_size": 32}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "weight", "scale"], ["product"], domain="com.microsoft", **sizes
    )
    constants = {
        "weight": packed["a.weight"].reshape(rows, columns // 32, 16).numpy(),
        "scale": packed["a.weight_scale"].float().flatten().numpy(),
        "bias": packed["a.bias"].numpy(),
    }
    found = _by_runtime(
        [node, onnx.helper.make_node("Add", ["product", "bias"], ["y"])], constants, x
    )
    model = nn.Sequential(linear)
    model.load_state_dict(rounded(model.state_dict(), "int4"))
    torch.testing.assert_close(model(x), found, atol=1e-5, rtol=1e-5)


def test_answers_at_int8_do_not_depend_on_the_batch() -> None:
    linear, x = _linear()
    model = nn.Sequential(linear)
    use_precision(model, "int8")
    x = torch.cat([x, 1e3 * torch.randn(1, 5, 64)])
    torch.testing.assert_close(model(x)[:3], model(x[:3]), atol=1e-6, rtol=0)
    torch.testing.assert_close(model(x)[:1, :1], model(x[:1, :1]), atol=1e-6, rtol=0)
