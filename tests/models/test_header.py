"""Headers: what a plan means, physical pruning against masks, and plans that are refused."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.cost.size import file_size, parameter_count
from acme_fleet.messages.header_plan import (
    Block,
    Genotype,
    HeaderPlan,
    Operation,
    known_operations,
    smallest_genotype,
)
from acme_fleet.models.header.module import (
    Header,
    LinearHeader,
    build_header,
    initial_tensors,
    prune,
)

HIDDEN, CLASSES = 6, 3
Pieces = list[tuple[tuple[int, int], tuple[Operation, Operation]]]


def genotype(pieces: Pieces, cells: int = 1, channels: int = 4) -> Genotype:
    blocks = tuple(Block(inputs=inputs, operations=operations) for inputs, operations in pieces)
    return Genotype(blocks=blocks, cells=cells, channels=channels)


def plan_of(
    pieces: Pieces, cells: int = 1, channels: int = 4, axes: Literal[1, 2] = 2
) -> HeaderPlan:
    return HeaderPlan(
        genotype=genotype(pieces, cells, channels), hidden=HIDDEN, classes=CLASSES, axes=axes
    )


def weights_for(plan: HeaderPlan) -> dict[str, Tensor]:
    """Random weights in which no bias is zero."""
    tensors = initial_tensors(plan.shapes(), torch.Generator().manual_seed(0))
    return {name: tensor + 0.1 for name, tensor in tensors.items()}


def features(axes: int, side: int = 5, samples: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "last": torch.randn(samples, HIDDEN, *(side,) * axes, generator=generator),
        "penultimate": torch.randn(samples, HIDDEN, *(side,) * axes, generator=generator),
        "pooled": torch.randn(samples, HIDDEN, generator=generator),
    }


@st.composite
def plans(draw: st.DrawFn) -> HeaderPlan:
    pieces: Pieces = []
    for block in range(draw(st.integers(1, 3))):
        sources = st.integers(0, block + 1)
        operations = st.sampled_from(known_operations())
        pieces.append((draw(st.tuples(sources, sources)), draw(st.tuples(operations, operations))))
    return plan_of(
        pieces,
        cells=draw(st.integers(1, 3)),
        channels=draw(st.integers(1, 5)),
        axes=draw(st.sampled_from([1, 2])),
    )


# --- what a plan means ------------------------------------------------------------------------


def interpret(plan: HeaderPlan, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """A second reading of METHOD 7, cell by cell from the features on, with dense sums."""
    convolve = F.conv1d if plan.axes == 1 else F.conv2d
    genotype = plan.genotype

    def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = weights[f"layers.{name}.weight"], weights[f"layers.{name}.bias"]
        return convolve(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def apply(name: str, operation: Operation, x: Tensor) -> Tensor:
        if operation == "identity":
            return x
        if operation == "avg_pool":  # the mean over the neighbours that exist
            kernel = torch.ones(1, 1, *(3,) * plan.axes)
            total = convolve(x.flatten(0, 1).unsqueeze(1), kernel, padding=1).view_as(x)
            return total / convolve(torch.ones_like(x[:, :1]), kernel, padding=1)
        if operation == "max_pool":
            x = F.pad(x, (1, 1) * plan.axes, value=-torch.inf)
            for axis in range(2, x.ndim):
                x = x.unfold(axis, 3, 1).amax(dim=-1)
            return x
        if operation == "attention":
            x = x.relu()
            query = weights[f"layers.{name}-attention.query"][0]
            scores = torch.einsum("c,bc...->b...", query, x).flatten(1)
            shares = (8 * (scores / 8).tanh()).softmax(dim=1)
            pooled = torch.einsum("bp,bcp->bc", shares, x.flatten(2))
            return layer(f"{name}-attention", x * 0 + pooled.view(*x.shape[:2], *(1,) * plan.axes))
        if operation.startswith("separable"):
            depthwise = weights[f"layers.{name}-{operation}.depthwise"]
            padding = depthwise.shape[-1] // 2
            each = [
                convolve(channel, kernel[None], padding=padding)
                for channel, kernel in zip(x.relu().split(1, dim=1), depthwise, strict=True)
            ]
            return layer(f"{name}-{operation}", torch.cat(each, dim=1))
        return layer(f"{name}-{operation}", x.relu(), 2 if operation == "downsample" else 1)

    def stride_to(side: int, x: Tensor) -> int:
        return next(2**k for k in range(9) if -(-x.shape[2] // 2**k) == side)

    def cell_input(name: str, parts: dict[int, Tensor], raw: bool) -> Tensor | None:
        """1×1 convolutions of all that is joined; None where the header reads no such input."""
        if not parts or f"layers.{name}-{next(iter(parts))}.weight" not in weights:
            return None
        side = min(x.shape[2] for x in parts.values())
        joined = [
            layer(f"{name}-{end}", x if raw else x.relu(), stride_to(side, x))
            for end, x in parts.items()
        ]
        return torch.stack(joined).sum(dim=0)

    # What the last two cells gave, nearest first; at the start what the backbone gives.
    history: list[dict[int, Tensor]] = [{0: inputs["last"]}, {0: inputs["penultimate"]}]
    for cell in range(genotype.cells):
        values = [cell_input(f"cell{cell}-input{i}", history[i], cell <= i) for i in (0, 1)]
        for number, block in enumerate(genotype.blocks):
            name, terms = f"cell{cell}-block{number}", []
            for slot, source in enumerate(block.inputs):
                x = values[source]
                if x is not None:
                    terms.append((slot, apply(f"{name}-{slot}", block.operations[slot], x)))
            side = min((x.shape[2] for _, x in terms), default=0)
            strides = [stride_to(side, x) for _, x in terms]
            same_size = [
                layer(f"{name}-{slot}-align", x, stride) if stride > 1 else x
                for (slot, x), stride in zip(terms, strides, strict=True)
            ]
            values.append(same_size[0] + same_size[1] if len(terms) == 2 else None)
        ends = {end: values[2 + end] for end in genotype.loose_ends}
        history = [{end: x for end, x in ends.items() if x is not None}, history[0]]
    logits = F.linear(
        inputs["pooled"], weights["classifier.pooled.weight"], weights["classifier.pooled.bias"]
    )
    for end, x in history[0].items():
        logits = logits + x.flatten(2).mean(2) @ weights[f"classifier.block{end}.weight"].T
    return logits


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(
    "pieces",
    [
        [((0, 1), ("conv1", "identity"))],
        [((0, 1), ("conv3", "conv5"))],
        [((0, 1), ("avg_pool", "max_pool"))],
        [((0, 1), ("downsample", "identity"))],
        [((0, 1), ("avg_pool", "downsample")), ((2, 0), ("downsample", "conv3"))],
        [((0, 0), ("downsample", "downsample")), ((1, 1), ("identity", "max_pool"))],
        [
            ((1, 0), ("identity", "conv1")),
            ((2, 2), ("conv3", "avg_pool")),
            ((0, 2), ("conv5",) * 2),
        ],
    ],
)
def test_one_cell_by_the_book(pieces: Pieces, axes: Literal[1, 2]) -> None:
    plan = plan_of(pieces, axes=axes)
    weights, inputs = weights_for(plan), features(axes)
    expected = interpret(plan, weights, inputs)
    torch.testing.assert_close(
        build_header(plan, weights)(**inputs), expected, rtol=1e-4, atol=1e-5
    )


@settings(max_examples=60)
@given(plans(), st.integers(1, 6))
def test_any_header_by_the_book(plan: HeaderPlan, side: int) -> None:
    """Stacked cells too: a cell's inputs are the two things before it, loose ends are joined."""
    halvings = max(node.halvings for node in plan.nodes)
    assume(halvings < 6)
    side += 2**halvings  # on sizes of one patch a stride cannot be told from the shapes
    weights, inputs = weights_for(plan), features(plan.axes, side, samples=2)
    expected = interpret(plan, weights, inputs)
    torch.testing.assert_close(
        build_header(plan, weights)(**inputs), expected, rtol=1e-3, atol=1e-4
    )


def test_every_input_matters() -> None:
    """The pooled token, the last and the penultimate map all reach the logits."""
    plan = plan_of([((0, 1), ("conv1", "conv1"))])
    header, inputs = build_header(plan, weights_for(plan)), features(2)
    full = header(**inputs)
    for name, value in inputs.items():
        assert not torch.allclose(header(**{**inputs, name: value + 1}), full, atol=1e-3)


def test_dead_parts_are_not_built() -> None:
    """Inputs, blocks and whole cells that the logits do not need are left out."""
    only_last = plan_of([((0, 0), ("identity", "identity"))])
    assert list(only_last.layers) == ["cell0-input0-0"]
    # Both cells read the one before the last only: the first cell is skipped.
    skipping = plan_of([((1, 1), ("identity", "conv1"))], cells=2)
    assert [node.name for node in skipping.nodes] == ["cell1-input1", "cell1-block0"]
    assert skipping.nodes[0].terms[0].source == "last"
    # Block 0 is read by block 1, so it is no loose end and has no classifier.
    chain = plan_of([((0, 1), ("conv1", "conv1")), ((2, 2), ("identity", "identity"))])
    assert list(chain.ends) == ["block1"]
    assert "classifier.block0.weight" not in chain.shapes()


def test_a_linear_header_reads_the_pooled_token_only() -> None:
    tensors = {"weight": torch.randn(CLASSES, HIDDEN), "bias": torch.randn(CLASSES)}
    inputs = features(2)
    expected = inputs["pooled"] @ tensors["weight"].T + tensors["bias"]
    torch.testing.assert_close(LinearHeader(tensors)(**inputs), expected)


# --- pruning ----------------------------------------------------------------------------------


def mask(header: Header, kept: dict[str, tuple[int, ...]], plan: HeaderPlan) -> None:
    """Set a full header's weights and biases of channels that are not kept to zero, in place."""
    for name, channels in kept.items():
        for position, channel in enumerate(plan.layers[name].outputs):
            if channel not in channels:
                for part in ("weight", "bias"):  # all that is the channel's own
                    header.layers[name].get_parameter(part).data[position] = 0


def some_of(data: st.DataObject, plan: HeaderPlan) -> dict[str, tuple[int, ...]]:
    """For some layers, some of the channels that they have."""
    kept = {}
    for name, layer in plan.layers.items():
        if data.draw(st.booleans()):
            chosen = data.draw(st.sets(st.sampled_from(layer.outputs), min_size=1))
            kept[name] = tuple(sorted(chosen))
    return kept


@settings(max_examples=40)
@given(plans(), st.data())
def test_pruned_equals_masked_twice(plan: HeaderPlan, data: st.DataObject) -> None:
    full = build_header(plan, weights_for(plan))
    masked, inputs = build_header(plan, full.state_dict()), features(plan.axes)
    pruned = full
    for _ in range(2):
        kept = some_of(data, pruned.plan)
        pruned = prune(pruned, kept)
        mask(masked, kept, plan)
        expected = masked(**inputs)
        torch.testing.assert_close(pruned(**inputs), expected, rtol=1e-4, atol=1e-5)
        assert all(pruned.plan.layers[name].outputs == channels for name, channels in kept.items())
    # It is as small as the plan says, and what came in is whole.
    shapes = {name: tuple(value.shape) for name, value in pruned.state_dict().items()}
    assert shapes == pruned.plan.shapes()
    assert len(save(pruned.state_dict(), metadata={"format": "pt"})) == file_size(shapes)
    assert full.plan == plan
    assert torch.equal(full(**inputs), build_header(plan, weights_for(plan))(**inputs))


def test_a_pruned_channel_takes_its_columns_along() -> None:
    """One channel less of the first layer is one column less of its reader: 6·1+1, 4·1, classes."""
    plan = plan_of([((0, 0), ("conv1", "conv1"))])
    header = build_header(plan, weights_for(plan))
    smaller = prune(header, {"cell0-input0-0": (0, 1, 3)})
    state = smaller.state_dict()
    assert state["layers.cell0-input0-0.weight"].shape == (3, HIDDEN, 1, 1)
    for reader in ("cell0-block0-0-conv1", "cell0-block0-1-conv1"):
        old = header.state_dict()[f"layers.{reader}.weight"]
        assert torch.equal(state[f"layers.{reader}.weight"], old[:, [0, 1, 3]])
    # A classifier's column goes once no term writes the channel any more.
    half = prune(smaller, {"cell0-block0-0-conv1": (0, 1)})
    assert half.state_dict()["classifier.block0.weight"].shape == (CLASSES, 4)
    both = prune(half, {"cell0-block0-1-conv1": (1, 3)})
    weight = header.state_dict()["classifier.block0.weight"]
    assert torch.equal(both.state_dict()["classifier.block0.weight"], weight[:, [0, 1, 3]])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"cell0-input0-0": ()}, "must ascend and not be empty"),
        ({"cell0-input0-0": (1, 0)}, "must ascend"),
        ({"cell0-input0-0": (1, 1)}, "must ascend"),
        ({"cell0-input0-0": (0, 4)}, "has no channel 4"),
        ({"cell0-input0-0": (-1, 0)}, "greater than or equal to 0"),
        ({"cell0-input1-0": (0,)}, "has no layers"),
        ({"cell0-input0-0": (0, 2)}, r"has no channels \[2\] any more"),
    ],
)
def test_impossible_prunings_are_refused(kept: dict[str, tuple[int, ...]], message: str) -> None:
    plan = plan_of([((0, 0), ("conv1", "conv1"))])
    header = prune(build_header(plan, weights_for(plan)), {"cell0-input0-0": (0, 1)})
    with pytest.raises(ValueError, match=message):
        prune(header, kept)


# --- plans as files ---------------------------------------------------------------------------


@settings(max_examples=30)
@given(plans(), st.data())
def test_json_and_tensors_rebuild_a_header_bit_for_bit(
    plan: HeaderPlan, data: st.DataObject
) -> None:
    header = build_header(plan, weights_for(plan))
    header = prune(header, some_of(data, plan))
    document, blob = header.plan.model_dump_json(), save(header.state_dict())
    rebuilt = build_header(HeaderPlan.model_validate_json(document), load(blob))
    assert rebuilt.plan == header.plan
    assert not rebuilt.training
    assert torch.equal(rebuilt(**features(plan.axes)), header(**features(plan.axes)))


GOOD: dict[str, Any] = {
    "genotype": {
        "blocks": [{"inputs": [0, 1], "operations": ["conv1", "identity"]}],
        "cells": 1,
        "channels": 4,
    },
    "hidden": 6,
    "classes": 3,
    "axes": 2,
    "kept": {},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("axes",), 3),
        (("hidden",), 0),
        (("hidden",), 2**16 + 1),
        (("classes",), 1),
        (("unknown",), 1),
        (("kept",), {"cell0-input0-0": [4]}),
        (("kept",), {"cell0-input0-0": []}),
        (("kept",), {"cell9-input0-0": [0]}),
        (("kept",), {"cell0-block0-1-conv1": [0]}),
        (("genotype", "cells"), 0),
        (("genotype", "cells"), 9),
        (("genotype", "channels"), 0),
        (("genotype", "channels"), 10**9),
        (("genotype", "blocks"), []),
        (("genotype", "blocks"), [GOOD["genotype"]["blocks"][0]] * 9),
        (("genotype", "blocks", 0, "inputs"), [0, 2]),
        (("genotype", "blocks", 0, "inputs"), [-1, 0]),
        (("genotype", "blocks", 0, "inputs"), [0]),
        (("genotype", "blocks", 0, "operations"), ["conv1", "conv7"]),
        (("genotype", "blocks", 0, "operations"), ["conv1"]),
    ],
)
def test_invalid_plans_are_refused(path: tuple[str | int, ...], value: Any) -> None:
    document: Any = HeaderPlan.model_validate(GOOD).model_dump(mode="json")
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match="validation error"):
        HeaderPlan.model_validate(document)


def test_a_plan_does_not_change() -> None:
    plan = HeaderPlan.model_validate(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        plan.hidden = 7
    assert plan.genotype.describe() == (
        "[conv1(last) + identity(penultimate)] × 1 cell of 4 channels"
    )


# --- the smallest header ----------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 2])
def test_smallest_genotype_by_enumeration(blocks: int, cells: int) -> None:
    """By total number of parameters, over all genotypes up to what cannot change the minimum.

    conv3 and conv5 stand where conv1 stands with more weights, the poolings weigh what the
    identity weighs, and a block's two terms can be exchanged.
    """
    operations: tuple[Operation, ...] = ("conv1", "identity", "downsample")

    def size(candidate: Genotype) -> int:
        plan = HeaderPlan(genotype=candidate, hidden=HIDDEN, classes=CLASSES, axes=2)
        return parameter_count(plan.shapes())

    options = [
        [
            ((i, j), (p, q))
            for (i, p), (j, q) in itertools.combinations_with_replacement(
                itertools.product(range(block + 2), operations), 2
            )
        ]
        for block in range(blocks)
    ]
    sizes = [size(genotype(list(pieces), cells)) for pieces in itertools.product(*options)]
    assert len(sizes) == {1: 21, 2: 21 * 45}[blocks]
    assert size(smallest_genotype(blocks, cells, 4)) == min(sizes)


def test_smallest_genotype_has_the_blocks_and_cells_that_were_asked() -> None:
    for blocks, cells in itertools.product((1, 2, 3, 4), (1, 2, 3, 4)):
        smallest = smallest_genotype(blocks, cells, 7)
        assert (len(smallest.blocks), smallest.cells, smallest.channels) == (blocks, cells, 7)
        assert len(smallest.loose_ends) == 1


# --- initial weights --------------------------------------------------------------------------


def test_initial_weights_depend_on_the_seed_and_not_on_the_order_of_names() -> None:
    shapes = {
        "layers.a.weight": (40, 30, 3),
        "layers.a.bias": (40,),
        "classifier.b.weight": (9, 50),
    }
    first = initial_tensors(shapes, torch.Generator().manual_seed(0))
    turned = initial_tensors(dict(reversed(shapes.items())), torch.Generator().manual_seed(0))
    other = initial_tensors(shapes, torch.Generator().manual_seed(1))
    for name in ("layers.a.weight", "classifier.b.weight"):
        assert torch.equal(first[name], turned[name])
        assert not torch.equal(first[name], other[name])
    assert not first["layers.a.bias"].any()
    assert first["layers.a.weight"].std().item() == pytest.approx((2 / 90) ** 0.5, rel=0.05)
    assert first["classifier.b.weight"].std().item() == pytest.approx((0.01 / 50) ** 0.5, rel=0.15)
