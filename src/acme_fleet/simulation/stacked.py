"""The headers of many devices as one function: every tensor has the device as an axis.

All are unpruned headers of one plan (:mod:`acme_fleet.models.header.unpruned`). A convolution of
each device with its own weights is one grouped convolution, whose groups are the devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.messages.header_plan import FEATURES, HeaderPlan, Layer, Term
from acme_fleet.models.header.operations import PASS_THROUGH
from acme_fleet.models.padding import at_stride, attended, clear_padding, mean_over_positions


def split_vectors(
    plan: HeaderPlan, vectors: Float[Tensor, "devices parameters"]
) -> dict[str, Float[Tensor, "devices ..."]]:
    """Each device's parameters, one row, as tensors by name (views)."""
    shapes = plan.shapes()
    pieces = vectors.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {
        name: piece.unflatten(1, shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def join_tensors(plan: HeaderPlan, tensors: Mapping[str, Tensor]) -> Shaped[Tensor, " parameters"]:
    """One header's tensors as one vector, in the plan's order."""
    return torch.cat([tensors[name].flatten() for name in plan.shapes()])


def stacked_logits(
    plan: HeaderPlan,
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
    inputs: Mapping[str, Shaped[Tensor, "batch devices ..."]],
) -> Float[Tensor, "devices classes batch"]:
    """Logits of every device's header for its own batch.

    Args:
        plan: what all have in common, unpruned.
        tensors: by name.
        inputs: a header's inputs with the axes ``(sample, device, channel, *grid)``, the order in
            which a grouped convolution takes them without a copy; a mask has one channel.
    """
    mask = inputs.get("mask")
    values = {name: inputs[name] for name in FEATURES}
    masks = dict.fromkeys(values, mask)
    for node in plan.nodes:
        terms = [
            _term(plan, term, values[term.source], masks[term.source], tensors)
            for term in node.terms
        ]
        masks[node.name] = at_stride(mask, 2**node.halvings)
        values[node.name] = clear_padding(sum(terms[1:], start=terms[0]), masks[node.name])
    read = {"pooled": inputs["pooled"]} | {
        name: mean_over_positions(values[node.name], masks[node.name], plan.axes)
        for name, node in plan.ends.items()
    }
    logits = tensors["classifier.pooled.bias"][:, :, None]
    for name, x in read.items():
        logits = logits + tensors[f"classifier.{name}.weight"] @ x.permute(1, 2, 0)
    return logits


def _term(
    plan: HeaderPlan,
    term: Term,
    x: Float[Tensor, "batch devices channels *grid"],
    mask: Bool[Tensor, "batch devices 1 tokens"] | None,
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
) -> Float[Tensor, "batch devices written *smaller"]:
    if term.layer:
        x = x if term.source in FEATURES else F.relu(x)
        x = _layer(plan, term.layer, _before(plan, term.layer, x, mask, tensors), tensors)
    else:
        x = PASS_THROUGH[term.operation](x, mask, plan.axes)
    return _layer(plan, term.align, x, tensors) if term.align else x


def _before(
    plan: HeaderPlan,
    layer: Layer,
    x: Float[Tensor, "batch devices channels *grid"],
    mask: Bool[Tensor, "batch devices 1 tokens"] | None,
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
) -> Float[Tensor, "batch devices channels *grid"]:
    """Inputs of a layer's own convolution, from what stands before it."""
    if layer.attends:
        query = tensors[f"layers.{layer.name}.query"]
        scores = (query @ x.flatten(3)).unflatten(3, x.shape[3:])
        x = attended(x, scores, mask, plan.axes)
    if layer.depthwise:
        weight = tensors[f"layers.{layer.name}.depthwise"].flatten(0, 1)
        x = _grouped(plan, x, weight, None, groups=len(weight))
    return x


def _layer(
    plan: HeaderPlan,
    layer: Layer,
    x: Float[Tensor, "batch devices inputs *grid"],
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
) -> Float[Tensor, "batch devices outputs *smaller"]:
    """Each device's own convolution."""
    weight, bias = (tensors[f"layers.{layer.name}.{name}"] for name in ("weight", "bias"))
    groups, stride = len(weight), layer.stride
    return _grouped(plan, x, weight.flatten(0, 1), bias.flatten(), groups=groups, stride=stride)


def _grouped(
    plan: HeaderPlan,
    x: Float[Tensor, "batch devices inputs *grid"],
    weight: Float[Tensor, "all entries *kernel"],
    bias: Float[Tensor, " all"] | None,
    *,
    groups: int,
    stride: int = 1,
) -> Float[Tensor, "batch devices outputs *smaller"]:
    convolve = F.conv1d if plan.axes == 1 else F.conv2d
    padding = weight.shape[-1] // 2
    seen = convolve(x.flatten(1, 2), weight, bias, stride, padding, groups=groups)
    return seen.unflatten(1, (x.shape[1], -1))
