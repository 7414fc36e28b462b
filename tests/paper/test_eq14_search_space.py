"""Eq. 14: how many headers there are, and that each of them is a working header."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from acme_fleet.cost.size import parameter_count
from acme_fleet.edge import search_space
from acme_fleet.edge.search_space import (
    SearchSpace,
    choices,
    decisions_of,
    every_genotype,
    genotype_of,
    space_size,
)
from acme_fleet.messages.header_plan import (
    MORE_OPERATIONS,
    OPERATIONS,
    Block,
    Genotype,
    HeaderPlan,
)
from acme_fleet.models.header.module import build_header, initial_tensors

HIDDEN, CLASSES = 6, 3
DOWNSAMPLE = OPERATIONS.index("downsample")


def space(blocks: int, cells: int, channels: int = 4, axes: Literal[1, 2] = 2) -> SearchSpace:
    return SearchSpace(
        blocks=blocks, cells=cells, channels=channels, hidden=HIDDEN, classes=CLASSES, axes=axes
    )


@st.composite
def headers(draw: st.DrawFn, most_blocks: int = 4) -> tuple[dict[str, Any], list[int]]:
    """The arguments of a space, and the decisions of one header in it."""
    arguments = {
        "blocks": draw(st.integers(1, most_blocks)),
        "cells": draw(st.integers(1, 3)),
        "channels": draw(st.integers(1, 5)),
        "axes": draw(st.sampled_from([1, 2])),
    }
    options = [n for b in range(arguments["blocks"]) for n in (b + 2, b + 2, 7, 7)]
    return arguments, list(draw(st.tuples(*(st.integers(0, n - 1) for n in options))))


# --- how many ---------------------------------------------------------------------------------


def test_there_are_196_headers_of_one_block() -> None:
    genotypes = list(every_genotype(1, cells=1, channels=4))
    assert len(set(genotypes)) == len(genotypes) == space_size(1) == 196
    assert {g.blocks[0].operations for g in genotypes} == set(
        itertools.product(OPERATIONS, repeat=2)
    )
    assert {g.blocks[0].inputs for g in genotypes} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("blocks", "count"), [(1, 196), (2, 86_436), (3, 67_765_824), (4, 83_013_134_400)]
)
def test_formula(blocks: int, count: int) -> None:
    assert space_size(blocks) == count == math.prod(choices(blocks))


@pytest.mark.parametrize(("operations", "blocks"), [(7, 1), (2, 2), (1, 3), (1, 4)])
def test_enumeration_agrees_with_the_formula(
    operations: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer operations deep spaces are small enough to be listed."""
    monkeypatch.setattr(search_space, "OPERATIONS", OPERATIONS[:operations])
    genotypes = list(every_genotype(blocks, cells=1, channels=4))
    assert len(set(genotypes)) == len(genotypes) == space_size(blocks)


@given(headers())
def test_decisions_round_trip(drawn: tuple[dict[str, Any], list[int]]) -> None:
    arguments, decisions = drawn
    header_space = space(**arguments)
    genotype = genotype_of(decisions, header_space.cells, header_space.channels)
    assert decisions_of(genotype) == decisions
    assert header_space.plan(decisions).genotype == genotype
    assert (genotype.cells, genotype.channels) == (header_space.cells, header_space.channels)


# --- each of them works -----------------------------------------------------------------------


def features(axes: int, sizes: tuple[int, int], samples: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid = sizes[:1] if axes == 1 else sizes
    return {
        "last": torch.randn(samples, HIDDEN, *grid, generator=generator),
        "penultimate": torch.randn(samples, HIDDEN, *grid, generator=generator),
        "pooled": torch.randn(samples, HIDDEN, generator=generator),
    }


def many_halvings(axes: int) -> tuple[dict[str, Any], list[int]]:
    """A chain of down-samplings, each beside an input that must be shrunk to fit."""
    decisions = [0, 0, DOWNSAMPLE, DOWNSAMPLE]
    decisions += [n for b in (2, 3, 4) for n in (b, 0, DOWNSAMPLE, 3)]
    return {"blocks": 4, "cells": 3, "channels": 4, "axes": axes}, decisions


@settings(max_examples=60)
@given(headers(), st.tuples(st.integers(1, 7), st.integers(1, 7)))
@example(many_halvings(1), (13, 1))
@example(many_halvings(2), (5, 7))
@example(many_halvings(2), (1, 1))
def test_every_header_builds_runs_and_learns(
    drawn: tuple[dict[str, Any], list[int]], sizes: tuple[int, int]
) -> None:
    """Exactly the predicted tensors, finite logits, and a gradient for every parameter."""
    arguments, decisions = drawn
    header_space = space(**arguments)
    plan = header_space.plan(decisions)
    header = build_header(plan, initial_tensors(plan.shapes(), torch.Generator().manual_seed(1)))
    shapes = {name: tuple(value.shape) for name, value in header.state_dict().items()}
    assert shapes == plan.shapes()
    assert sum(p.numel() for p in header.parameters()) == parameter_count(plan.shapes())
    assert plan.neurons == sum(len(header.state_dict()[f"layers.{n}.bias"]) for n in plan.layers)

    logits = header(**features(header_space.axes, sizes))
    assert logits.shape == (2, CLASSES)
    assert bool(logits.isfinite().all())
    F.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(parameter.grad is not None for parameter in header.parameters())


@settings(max_examples=30)
@given(headers(most_blocks=3))
def test_one_axis_is_a_grid_of_one_row(drawn: tuple[dict[str, Any], list[int]]) -> None:
    """A 2-D header on one row equals the 1-D header with the middle rows of its kernels."""
    arguments, decisions = drawn
    flat, grid = space(**{**arguments, "axes": 1}), space(**{**arguments, "axes": 2})
    tensors = initial_tensors(grid.plan(decisions).shapes(), torch.Generator().manual_seed(1))
    inputs = features(1, (6, 1))
    middle = {n: t[:, :, t.shape[2] // 2] if t.ndim == 4 else t for n, t in tensors.items()}
    one_row = {n: x.unsqueeze(2) if x.ndim == 3 else x for n, x in inputs.items()}
    torch.testing.assert_close(
        build_header(flat.plan(decisions), middle)(**inputs),
        build_header(grid.plan(decisions), tensors)(**one_row),
        rtol=1e-4,
        atol=1e-5,
    )


# --- one set of weights for all ---------------------------------------------------------------


@settings(max_examples=60)
@given(headers())
def test_shared_weights_hold_every_headers_tensors(drawn: tuple[dict[str, Any], list[int]]) -> None:
    arguments, decisions = drawn
    header_space = space(**arguments)
    assert header_space.plan(decisions).shapes().items() <= header_space.shared_shapes().items()


@pytest.mark.parametrize("cells", [1, 2, 3])
@pytest.mark.parametrize("axes", [1, 2])
def test_shared_weights_hold_nothing_else(cells: int, axes: Literal[1, 2]) -> None:
    """Every tensor of ω is one that some header uses."""
    header_space = space(1, cells, axes=axes)
    union: dict[str, Any] = {}
    for genotype in every_genotype(1, cells, header_space.channels):
        union |= header_space.plan(decisions_of(genotype)).shapes()
    assert union == header_space.shared_shapes()


def test_tensors_of_one_name_do_the_same_in_every_header() -> None:
    """Two headers that share a prefix of the graph give the same values there."""
    header_space = space(2, 1)
    omega = initial_tensors(header_space.shared_shapes(), torch.Generator().manual_seed(0))
    first = header_space.plan([0, 1, 1, 4, 2, 2, 3, 3])  # block 1 doubles block 0
    second = header_space.plan([0, 1, 1, 4, 2, 0, 3, 0])
    one, two = (build_header(plan, omega) for plan in (first, second))
    seen: dict[str, list[torch.Tensor]] = {}
    for header in (one, two):
        for name, module in header.sums.items():
            module.register_forward_hook(lambda _m, _x, y, n=name: seen.setdefault(n, []).append(y))
        header(**features(2, (5, 4)))
    assert torch.equal(*seen["cell0-block0"])
    assert torch.equal(seen["cell0-block1"][0], 2 * seen["cell0-block0"][0])
    assert not torch.equal(*seen["cell0-block1"])


# --- operations beside the paper's ------------------------------------------------------------


def test_more_operations_are_proposed_where_they_are_named() -> None:
    """One block has (2 · 10)² headers; ω has a tensor for each, and the paper's space keeps its."""
    arguments: dict[str, Any] = {"blocks": 1, "cells": 1, "channels": 4, "axes": 2}
    arguments |= {"hidden": HIDDEN, "classes": CLASSES}
    plain, wide = SearchSpace(**arguments), SearchSpace(**arguments, more=MORE_OPERATIONS)
    assert space_size(1, MORE_OPERATIONS) == 400 == math.prod(choices(1, MORE_OPERATIONS))
    every = [wide.plan(d) for d in itertools.product(*map(range, choices(1, MORE_OPERATIONS)))]
    assert all(decisions_of(plan.genotype, MORE_OPERATIONS) for plan in every)
    union = {name: shape for plan in every for name, shape in plan.shapes().items()}
    shared = wide.shared_shapes()
    assert union == shared
    assert shared.items() > plain.shared_shapes().items()
    assert not any("separable" in name or "attention" in name for name in plain.shared_shapes())


@pytest.mark.parametrize(
    ("operation", "weights"),
    [("conv5", 25 * 4 * 4), ("separable5", (25 + 4) * 4), ("attention", 4 * 4 + 4)],
)
def test_sizes_of_operations_by_hand(operation: str, weights: int) -> None:
    """Beside a bias of 4: 5 × 5 for each pair of channels, or for each channel and then 1 × 1."""
    block = Block(inputs=(0, 0), operations=(operation, "identity"))
    genotype = Genotype(blocks=(block,), cells=1, channels=4)
    plan = HeaderPlan(genotype=genotype, hidden=HIDDEN, classes=CLASSES, axes=2)
    shapes = {n: s for n, s in plan.shapes().items() if n.startswith("layers.cell0-block0-0")}
    assert sum(math.prod(shape) for shape in shapes.values()) == weights + 4
