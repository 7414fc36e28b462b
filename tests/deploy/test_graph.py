"""Whole models as graphs: they compute in ONNX Runtime what PyTorch does, at every precision.

Exports take seconds, so that most of them are slow tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import jaxtyping
import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import shapes_of, stored_model, stored_size
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.deploy import graph as graphs
from acme_fleet.deploy.graph import build_graph
from acme_fleet.deploy.onnx_format import MINIMUM
from acme_fleet.deploy.verify import TOLERANCES
from acme_fleet.errors import FleetError
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import CustomizedModel
from acme_fleet_runtime.runner import start
from tiny_device import device_model

_OVERHEAD = 4_000  # bytes of constants that no file of weights has
RULE = ImagePreprocessing.centred(8, 8, 1)


@pytest.fixture(autouse=True)
def _any_size() -> Iterator[None]:
    """Checks of shapes would fix the sizes that the exporter sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def check(model: CustomizedModel, family: str) -> onnx.ModelProto:
    """The graph's answers to batches, lengths and paddings that the exporter has not seen."""
    images = FAMILIES[family].grid == "image"
    # Without a tokenizer: no text is read here.
    rule = RULE if images else TextPreprocessing(tokenizer={}, max_tokens=16, pad_id=0)
    content = build_graph(model, rule)
    session = start(content, MINIMUM, 1)
    draw = torch.Generator().manual_seed(0)
    spread = None
    for batch, width, left in ((5, 12, False), (1, 2, False), (4, 9, True), (3, 16, False)):
        if images:
            pixels = torch.randint(256, (batch, 8, 8, 1), generator=draw, dtype=torch.uint8)
            given = {"pixels": pixels}
            inputs = {"pixel_values": (pixels.permute(0, 3, 1, 2) * (1 / 255) - 0.5) / 0.5}
        else:
            lengths = torch.randint(1, width + 1, (batch, 1), generator=draw)
            mask = (torch.arange(width) < lengths).long()
            ids = torch.randint(1, 30, (batch, width), generator=draw)
            given = inputs = {
                "input_ids": ids,
                "attention_mask": mask.flip(1) if left else mask,
            }
        with torch.no_grad():
            expected = model(**inputs).numpy()
        logits, probabilities = session.run(
            ["logits", "probabilities"], {name: x.numpy() for name, x in given.items()}
        )
        spread = spread or float(np.ptp(expected, axis=1).mean())
        tolerance = TOLERANCES[model.backbone.config.precision]
        assert np.abs(logits - expected).max() <= tolerance * spread
        softmax = torch.from_numpy(logits).softmax(dim=1).numpy()
        np.testing.assert_allclose(probabilities, softmax, atol=1e-6)
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto)
    return proto


def check_size(proto: onnx.ModelProto, model: CustomizedModel) -> None:
    """Weights take the bytes of the device's file."""
    precision = model.backbone.config.precision
    shapes = shapes_of(model.backbone), shapes_of(model.header)
    shipped = stored_size(stored_model(*shapes, precision))
    names = sum(len(tensor.SerializeToString()) for tensor in proto.graph.initializer)
    assert names <= shipped + _OVERHEAD


@pytest.mark.parametrize(
    ("family", "precision", "pooling"),
    [("vit", "int8", "first_mean"), ("bert", "int4", "mean"), ("llama", "float16", "last")],
)
def test_one_of_each_precision(
    plain_backbone: Callable[..., PreTrainedModel],
    family: str,
    precision: Precision,
    pooling: Pooling,
):
    model = device_model(plain_backbone(family, layers=1), precision, pooling)
    proto = check(model, family)
    check_size(proto, model)
    kinds = {node.op_type for node in proto.graph.node}
    stored = {tensor.data_type for tensor in proto.graph.initializer}
    if precision == "int8":
        assert "MatMulIntegerToFloat" in kinds
        assert onnx.TensorProto.INT8 in stored
    elif precision == "int4":
        assert "MatMulNBits" in kinds
        assert {onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16} <= stored
    else:
        assert onnx.TensorProto.FLOAT16 in stored


_POOLINGS: dict[str, tuple[Pooling, ...]] = {
    "image": ("first", "mean", "first_mean"),
    "sequence": ("first", "mean", "last", "first_mean"),
}
_EVERY = [
    (family, precision, pooling)
    for (number, family), precision in itertools.product(enumerate(FAMILIES), TOLERANCES)
    for poolings in (_POOLINGS[FAMILIES[family].grid],)
    for pooling in (poolings[(number + list(TOLERANCES).index(precision)) % len(poolings)],)
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "precision", "pooling"), _EVERY)
def test_every_family_at_every_precision(
    plain_backbone: Callable[..., PreTrainedModel],
    family: str,
    precision: Precision,
    pooling: Pooling,
):
    model = device_model(plain_backbone(family, layers=2), precision, pooling)
    check_size(check(model, family), model)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", _POOLINGS["sequence"])
def test_every_pooling_of_texts(plain_backbone: Callable[..., PreTrainedModel], pooling: Pooling):
    check(device_model(plain_backbone("bert", layers=1), "float32", pooling), "bert")


def test_what_cannot_be_exported_is_told(
    plain_backbone: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
):
    model = device_model(plain_backbone("vit", layers=1), "float32", "first")
    monkeypatch.setattr(graphs, "_LARGEST", 100)
    with pytest.raises(FleetError, match="bytes of weights are too many for one ONNX file"):
        build_graph(model, RULE)
    monkeypatch.setattr(graphs, "find_spec", lambda _: None)
    with pytest.raises(FleetError, match=r'pip install "acme-fleet\[export\]"'):
        build_graph(model, RULE)
    monkeypatch.undo()

    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(FleetError, match="PyTorch cannot export this model to ONNX"):
        graphs.export_module(Branching(), {"x": torch.ones(2, 2)}, {}, ["y"])
