"""A pruned header in the places of the unpruned one, so that headers of one genotype line up.

What was pruned is zero there and marked as absent: the function is the same, and every neuron of
every device has one address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.header.module import Header, build_header, prune


def unpruned(plan: HeaderPlan) -> HeaderPlan:
    """The plan before any pruning."""
    return HeaderPlan.model_validate({**plan.model_dump(), "kept": {}})


def places(plan: HeaderPlan) -> Iterator[tuple[str, tuple[Int[Tensor, ...], ...]]]:
    """For each tensor of a header its name, and an index of its place in the unpruned one."""
    for name, layer in plan.layers.items():
        rows = torch.tensor(layer.outputs)
        columns = torch.tensor(layer.inputs)
        yield f"layers.{name}.weight", (rows[:, None], columns)
        yield f"layers.{name}.bias", (rows,)
        if layer.depthwise:
            yield f"layers.{name}.depthwise", (columns,)
        if layer.attends:
            yield f"layers.{name}.query", (torch.zeros(1, 1, dtype=torch.long), columns)
    for name, node in plan.ends.items():
        columns = torch.tensor(node.channels)
        yield f"classifier.{name}.weight", (torch.arange(plan.classes)[:, None], columns)
    if not plan.causal:
        yield "classifier.pooled.weight", ()
        yield "classifier.pooled.bias", ()


def expand(plan: HeaderPlan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a header, each in the shape of the unpruned one, zeros where it was pruned."""
    shapes = unpruned(plan).shapes()
    expanded = {}
    for name, place in places(plan):
        expanded[name] = torch.zeros(shapes[name], dtype=tensors[name].dtype)
        expanded[name][place or ...] = tensors[name]
    return expanded


def presence(plan: HeaderPlan) -> dict[str, Bool[Tensor, ...]]:
    """For each tensor of the unpruned header which of its entries the plan still has."""
    shapes = plan.shapes()
    return expand(plan, {name: torch.ones(shapes[name], dtype=torch.bool) for name in shapes})


def shrink(plan: HeaderPlan, expanded: Mapping[str, Tensor]) -> Header:
    """The header of ``plan`` from tensors in the shapes of the unpruned one."""
    header = build_header(unpruned(plan), expanded)
    return prune(header, plan.kept) if plan.kept else header
