"""The headers of many devices as one function: every tensor has the device as its first axis.

All are unpruned headers of one plan (:mod:`acme_fleet.models.header.unpruned`). A convolution of
each device with its own weights is one batched matrix product; ``vmap`` over the convolutions
would make it a grouped one, which is slow on a CPU.
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
    inputs: Mapping[str, Shaped[Tensor, "devices ..."]],
) -> Float[Tensor, "devices classes batch"]:
    """Logits of every device's header for its own batch.

    Args:
        plan: what all have in common, unpruned.
        tensors: by name.
        inputs: a header's inputs with the axes ``(device, channel, sample, *grid)``, the order
            in which a batched product takes them without a copy; a mask has one channel.
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
    bias = tensors["classifier.pooled.bias"][:, :, None]
    logits = torch.baddbmm(bias, tensors["classifier.pooled.weight"], inputs["pooled"])
    for name, node in plan.ends.items():
        mean = mean_over_positions(values[node.name], masks[node.name], plan.axes)
        logits = logits + tensors[f"classifier.{name}.weight"] @ mean
    return logits


def _term(
    plan: HeaderPlan,
    term: Term,
    x: Float[Tensor, "devices channels batch *grid"],
    mask: Bool[Tensor, "devices 1 batch tokens"] | None,
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
) -> Float[Tensor, "devices written batch *smaller"]:
    if term.layer:
        x = x if term.source in FEATURES else F.relu(x)
        x = _convolution(term.layer, _before(plan, term.layer, x, mask, tensors), tensors)
    else:
        x = PASS_THROUGH[term.operation](x, mask, plan.axes)
    return _convolution(term.align, x, tensors) if term.align else x


def _before(
    plan: HeaderPlan,
    layer: Layer,
    x: Float[Tensor, "devices channels batch *grid"],
    mask: Bool[Tensor, "devices 1 batch tokens"] | None,
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
) -> Float[Tensor, "devices channels batch *grid"]:
    """Inputs of a layer's own convolution, from what stands before it."""
    if layer.attends:
        query = tensors[f"layers.{layer.name}.query"]
        scores = (query @ x.flatten(2)).unflatten(2, x.shape[2:])
        x = attended(x, scores, mask, plan.axes)
    if layer.depthwise:
        weight = tensors[f"layers.{layer.name}.depthwise"].flatten(0, 1)
        grouped = x.transpose(0, 2).transpose(1, 2).flatten(1, 2)  # sample, device and channel
        convolve = F.conv1d if plan.axes == 1 else F.conv2d
        far = convolve(grouped, weight, padding=layer.depthwise // 2, groups=len(weight))
        x = far.unflatten(1, x.shape[:2]).permute(1, 2, 0, *range(3, x.ndim))
    return x


def _convolution(
    layer: Layer,
    x: Float[Tensor, "devices inputs batch *grid"],
    tensors: Mapping[str, Float[Tensor, "devices ..."]],
) -> Float[Tensor, "devices outputs batch *smaller"]:
    """Each device's own convolution: windows as columns, then one product for all devices."""
    grid = x.shape[3:]
    if (layer.kernel, layer.stride) == (1, 1):
        columns = x.flatten(2)
    else:
        columns = _windows(layer, x)
        grid = torch.Size((side - 1) // layer.stride + 1 for side in grid)
    weight = tensors[f"layers.{layer.name}.weight"].flatten(2)
    bias = tensors[f"layers.{layer.name}.bias"][:, :, None]
    return torch.baddbmm(bias, weight, columns).unflatten(2, (x.shape[2], *grid))


def _windows(
    layer: Layer, x: Float[Tensor, "devices inputs batch *grid"]
) -> Float[Tensor, "devices entries positions"]:
    """Under each output position what a kernel sees, in the order of the weight's entries."""
    devices, channels, batch, *grid = x.shape
    image = len(grid) == 2
    kernel = (layer.kernel if image else 1, layer.kernel)
    seen = F.unfold(
        x.reshape(devices, channels * batch, *(grid if image else (1, *grid))),
        kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        stride=(layer.stride if image else 1, layer.stride),
    )
    apart = seen.view(devices, channels, batch, math.prod(kernel), -1)
    return apart.transpose(2, 3).reshape(devices, channels * math.prod(kernel), -1)
