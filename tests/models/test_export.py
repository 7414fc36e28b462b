"""Modules answer in ONNX Runtime as in PyTorch, exported as ``acme export`` does it.

Batches, lengths of texts and the padding around them are others than those that the exporter saw.
An export takes seconds, and one with axes of any length more, so most of them are slow tests.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.deploy.graph import export_module, shorten
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan, Operation, known_operations
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES, dimensions
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.by_hand import HAND_MADE, hand_made
from acme_fleet.models.header.module import (
    Header,
    LinearHeader,
    build_header,
    initial_tensors,
    prune,
)

HIDDEN, CLASSES, CHANNELS = 6, 3, 4
Inputs = dict[str, Tensor]
Axes = Literal[1, 2]


class Model(nn.Module):
    """A device's model whose inputs have a place each, as exporters take them."""

    def __init__(self, model: CustomizedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        values = (first,) if second is None else (first, second)
        return self.model(**dict(zip(self.names, values, strict=True)))


class Several(nn.Module):
    """Headers on the same features, in one module because every export takes its time."""

    def __init__(self, headers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.headers = nn.ModuleList(headers)

    def forward(
        self, last: Tensor, penultimate: Tensor, pooled: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        return torch.stack([each(last, penultimate, pooled, mask) for each in self.headers])


def exported(module: nn.Module, inputs: Inputs, free: Mapping[str, Sequence[int]]) -> Callable:
    """The module run by ONNX Runtime; axes of ``free`` may have any size.

    ONNX Runtime's optimiser knows more where all sizes are fixed, and could make other mistakes.
    """
    jaxtyping.config.update("jaxtyping_disable", True)  # its checks would fix the traced sizes
    try:
        graph = export_module(module, inputs, {n: tuple(axes) for n, axes in free.items()}, ["y"])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    shorten(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> np.ndarray:
        given = dict(zip(names, inputs.values(), strict=True))
        return np.asarray(session.run(None, {n: x.numpy() for n, x in given.items()})[0])

    return run


def check(module: nn.Module, seen: Inputs, free: Mapping[str, Sequence[int]], *new: Inputs) -> None:
    """The exported module equals PyTorch's on the inputs that it was exported with, and others."""
    run = exported(module, seen, free)
    for inputs in (seen, *new):
        with torch.no_grad():
            expected = module(*inputs.values()).numpy()
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(run(inputs), expected, rtol=0, atol=1e-4)


# --- headers ----------------------------------------------------------------------------------


def header_of(plan: HeaderPlan, seed: int, share: float) -> Header:
    """A header whose layers each have lost about this share of their channels."""
    draw = random.Random(seed)
    tensors = initial_tensors(plan.shapes(), torch.Generator().manual_seed(seed))
    header = build_header(plan, {name: tensor + 0.1 for name, tensor in tensors.items()})
    kept = {}
    for layer in plan.layers:
        left = [channel for channel in range(CHANNELS) if draw.random() >= share]
        kept[layer] = tuple(left or [draw.randrange(CHANNELS)])
    return prune(header, kept) if share else header


def plan_of(blocks: Sequence[Block], axes: Axes, cells: int = 1) -> HeaderPlan:
    genotype = Genotype(blocks=tuple(blocks), cells=cells, channels=CHANNELS)
    return HeaderPlan(genotype=genotype, hidden=HIDDEN, classes=CLASSES, axes=axes)


def half_pruned(operation: Operation, axes: Axes) -> Header:
    """The first summand lacks channels, the second has them all: then the exporter's trap opens.

    Of an ``index_add`` over the full range the optimiser keeps what is added and drops the rest.
    """
    plan = plan_of([Block(inputs=(0, 1), operations=("conv1", operation))], axes)
    first = plan.nodes[-1].terms[0]
    layer = first.align or first.layer
    assert layer is not None
    return prune(header_of(plan, seed=1, share=0), {layer.name: (0, 2)})


def features(batch: int, axes: Axes, size: int, seed: int = 0) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, HIDDEN, *(size,) * axes)
    inputs = {name: torch.randn(shape, generator=draw) for name in ("last", "penultimate")}
    inputs["pooled"] = torch.randn(batch, HIDDEN, generator=draw)
    if axes == 1:
        lengths = torch.randint(1, size + 1, (batch, 1, 1), generator=draw)
        inputs["mask"] = torch.arange(size) < lengths
        inputs["last"], inputs["penultimate"] = (
            inputs[name] * inputs["mask"] for name in ("last", "penultimate")
        )
    return inputs


def check_headers(
    headers: Sequence[nn.Module], axes: Axes, free: Literal["none", "batch", "length"] = "none"
) -> None:
    seen, module = features(2, axes, size=7), Several(headers)
    if free == "none":
        check(module, seen, {}, features(2, axes, size=7, seed=1))
    elif free == "batch":
        check(module, seen, dict.fromkeys(seen, (0,)), features(5, axes, size=7, seed=1))
    else:
        both = {name: (0,) if name == "pooled" else (0, 2) for name in seen}
        check(module, seen, both, features(1, axes, size=12), features(5, axes, size=5))


@pytest.mark.parametrize("axes", [1, 2])
def test_every_operation_beside_one_that_is_pruned(axes: Axes) -> None:
    check_headers([half_pruned(operation, axes) for operation in known_operations()], axes)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [1, 2])
def test_exported_by_others_with_pytorchs_optimiser(axes: Axes) -> None:
    """It has dropped summands of headers: no header may have what it does not understand."""
    module = Several([half_pruned(operation, axes) for operation in known_operations()])
    seen, other = features(2, axes, size=7), features(2, axes, size=7, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        jaxtyping.config.update("jaxtyping_disable", True)
        program = torch.onnx.export(module, tuple(seen.values()), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [entry.name for entry in session.get_inputs()]
    given = dict(zip(names, (x.numpy() for x in other.values()), strict=True))
    with torch.no_grad():
        expected = module(*other.values()).numpy()
    np.testing.assert_allclose(session.run(None, given)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("share", [0, 0.4])
@pytest.mark.parametrize("free", ["none", "batch"])
def test_all_operations_in_one_header(
    free: Literal["none", "batch"], share: float, axes: Axes
) -> None:
    blocks = [
        Block(inputs=(0, number + 1), operations=(operation, "identity"))
        for number, operation in enumerate(known_operations())
    ]
    check_headers([header_of(plan_of(blocks, axes), 0, share)], axes, free)


@pytest.mark.slow
def test_texts_of_any_length() -> None:
    blocks = [
        Block(inputs=(0, 1), operations=("downsample", "max_pool")),
        Block(inputs=(2, 0), operations=("avg_pool", "conv3")),
    ]
    check_headers([header_of(plan_of(blocks, axes=1), 0, share=0.4)], axes=1, free="length")


@pytest.mark.slow
@pytest.mark.parametrize("axes", [1, 2])
def test_headers_made_by_hand(axes: Axes) -> None:
    draw = torch.Generator().manual_seed(0)
    classifier = {
        "weight": torch.randn(CLASSES, HIDDEN, generator=draw),
        "bias": torch.randn(CLASSES, generator=draw),
    }
    maps = (HIDDEN, 12) if axes == 1 else (HIDDEN, 7, 7)
    made = [hand_made(kind, classifier, maps, 9_000, draw) for kind in HAND_MADE]
    headers = [header for header in made if header is not None]
    assert len(headers) == 3
    check_headers([*headers, LinearHeader(classifier)], axes, free="batch")


@pytest.mark.slow
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_any_header(seed: int, axes: Axes) -> None:
    """Up to three blocks and cells, every state of pruning."""
    draw = random.Random(seed)

    def block(number: int) -> Block:
        sources = (draw.randint(0, number + 1), draw.randint(0, number + 1))
        known = known_operations()
        return Block(inputs=sources, operations=(draw.choice(known), draw.choice(known)))

    headers = []
    for share in (0, 0.1, 0.3, 0.6):
        blocks = [block(number) for number in range(draw.randint(1, 3))]
        plan = plan_of(blocks, axes, cells=draw.randint(1, 3))
        headers.append(header_of(plan, seed, share))
    check_headers(headers, axes, free="length" if axes == 1 and seed % 4 == 0 else "none")


# --- whole models -----------------------------------------------------------------------------


def whole_model(backbone: PreTrainedModel, operations: Sequence[Operation]) -> CustomizedModel:
    """A backbone whose layers differ in width, and a pruned header."""
    elastic = as_elastic(backbone)
    sizes = dimensions(elastic.config)
    heads = tuple(1 + layer % sizes.heads for layer in range(sizes.layers))
    neurons = tuple(3 + 2 * layer for layer in range(sizes.layers))
    small = extract(elastic, Architecture(tuple(range(sizes.layers)), heads, neurons))
    axes: Axes = 2 if FAMILIES[backbone.config.model_type].grid == "image" else 1
    blocks = [
        Block(inputs=(number, 1), operations=(operation, "identity"))
        for number, operation in enumerate(operations)
    ]
    plan = plan_of(blocks, axes).model_copy(update={"hidden": sizes.hidden})
    plan = HeaderPlan.model_validate(plan.model_dump())
    return CustomizedModel(small, header_of(plan, 0, share=0.3))


def texts(batch: int, width: int, *, left: bool = False) -> Inputs:
    draw = torch.Generator().manual_seed(width)
    lengths = torch.randint(1, width + 1, (batch, 1), generator=draw)
    ids = torch.randint(1, 30, (batch, width), generator=draw)
    mask = (torch.arange(width) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask.flip(1) if left else mask}


def check_family(backbone: PreTrainedModel, operations: Sequence[Operation]) -> None:
    model = whole_model(backbone, operations)
    draw = torch.Generator().manual_seed(0)
    if FAMILIES[backbone.config.model_type].grid == "image":
        batches = [{"pixel_values": torch.randn(n, 1, 8, 8, generator=draw)} for n in (2, 5, 1)]
        free = {"pixel_values": (0,)}
    else:
        widths = (7, 4, 12, 16)
        batches = [
            texts(n, width, left=n > 2) for n, width in zip((2, 1, 4, 3), widths, strict=True)
        ]
        nothing = {**texts(2, 7), "attention_mask": torch.tensor([[0] * 7, [1] * 7])}
        batches.append(nothing)
        free = dict.fromkeys(nothing, (0, 1))
    check(Model(model, list(batches[0])), batches[0], free, *batches[1:])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_texts_of_any_length(
    family: str, plain_backbone: Callable[..., PreTrainedModel]
) -> None:
    """The attention of the last layer of Qwen2 has a window."""
    operations: list[Operation] = ["downsample", "avg_pool", "max_pool"]
    check_family(plain_backbone(family, layers=2), operations)
