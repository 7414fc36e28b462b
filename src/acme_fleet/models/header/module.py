"""The header as a plain PyTorch module, built from its plan, and its physical pruning.

Every layer's name depends only on its place and its operation, so all headers of a search space
share one set of weights by name (the search's ω). Pruning removes output channels of single
layers: a node sums what its terms have left, channel by channel, and a later layer reads only
channels that something writes. No weight is masked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.initialization import no_init_weights

from acme_fleet.messages.header_plan import (
    FEATURES,
    Channels,
    HeaderPlan,
    Layer,
    Node,
    Term,
)
from acme_fleet.models.header.operations import CAUSAL, PASS_THROUGH
from acme_fleet.models.padding import (
    at_stride,
    attended,
    clear_padding,
    mean_over_positions,
)

Pool = dict[Layer | tuple[str, Channels], nn.Module]
"""Modules by the layer, or the classifier's name and channels, that they stand for."""


class Header(nn.Module):
    """Maps two feature maps and a pooled token to logits; see :class:`HeaderPlan`.

    A causal header has no pooled token. It maps the last hidden state of each token to a changed
    one: convolutions and poolings see the token and those before it, and what a map has at every
    second position only counts for the position behind it too.

    ``pool`` holds modules that skeletons without weights of their own, which are many, may share.
    """

    def __init__(self, plan: HeaderPlan, pool: Pool | None = None) -> None:
        super().__init__()
        self.plan = plan
        pool = {} if pool is None else pool
        for layer in plan.layers.values():
            if layer not in pool:
                pool[layer] = _LayerModule(layer, plan)
        self.layers = nn.ModuleDict({name: pool[layer] for name, layer in plan.layers.items()})
        self.sums = nn.ModuleDict({node.name: _Sum(node) for node in plan.nodes})
        read = {name: node.channels for name, node in plan.ends.items()}
        if not plan.causal:
            read["pooled"] = tuple(range(plan.pooled_size))
        used = {term.operation for node in plan.nodes for term in node.terms if not term.layer}
        if plan.causal and (unknown := used - CAUSAL.keys()):
            raise ValueError(f"the operation {min(unknown)} has no causal form")
        causal = {name: operation.apply for name, operation in CAUSAL.items()}
        self._pass_through = causal if plan.causal else PASS_THROUGH
        for key in read.items():
            if key not in pool:
                pool[key] = nn.Linear(len(key[1]), plan.classes, bias=key[0] == "pooled")
        self.classifier = nn.ModuleDict({key[0]: pool[key] for key in read.items()})

    def forward(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch classes *tokens"]:
        """Logits, or the changed hidden states of all tokens.

        Args:
            last, penultimate: rows and columns of patches, or tokens; zero at padded positions.
            pooled: the pooled token.
            mask: true at real positions; see :mod:`acme_fleet.models.padding`. None where every
                position is real.
        """
        values = {"last": last, "penultimate": penultimate}
        masks = dict.fromkeys(values, mask)
        for node in self.plan.nodes:
            terms = [
                self._term(term, values[term.source], masks[term.source]) for term in node.terms
            ]
            masks[node.name] = at_stride(mask, 2**node.halvings)
            values[node.name] = clear_padding(self.sums[node.name](terms), masks[node.name])
        if self.plan.causal:
            return self._changed(last, values, mask)
        logits = self.classifier["pooled"](pooled)
        for name, node in self.plan.ends.items():
            mean = mean_over_positions(values[node.name], masks[node.name], self.plan.axes)
            logits = logits + self.classifier[name](mean)
        return logits

    def _changed(
        self,
        last: Float[Tensor, "batch hidden tokens"],
        values: Mapping[str, Tensor],
        mask: Bool[Tensor, "batch 1 tokens"] | None,
    ) -> Float[Tensor, "batch hidden tokens"]:
        tokens, changed = last.shape[-1], last
        for name, node in self.plan.ends.items():
            added = self.classifier[name](values[node.name].transpose(1, 2)).transpose(1, 2)
            # Position i of a smaller map has seen the tokens up to i · stride.
            changed = changed + added.repeat_interleave(2**node.halvings, dim=2)[..., :tokens]
        return clear_padding(changed, mask)

    def _term(
        self,
        term: Term,
        x: Float[Tensor, "batch channels *grid"],
        mask: Bool[Tensor, "batch 1 tokens"] | None,
    ) -> Float[Tensor, "batch written *smaller"]:
        # Features enter their first layer unrectified: their sign carries information.
        if term.layer:
            x = x if term.source in FEATURES else F.relu(x)
            x = self.layers[term.layer.name](x, mask)
        else:
            x = self._pass_through[term.operation](x, mask, self.plan.axes)
        # Of kernel 1: what stands at padded positions stays there, until the sum is cleared.
        return self.layers[term.align.name](x) if term.align else x


class _LayerModule(nn.Module):
    """A layer's convolution, and what stands before it."""

    weight: Tensor
    bias: Tensor
    depthwise: Tensor
    query: Tensor

    def __init__(self, layer: Layer, plan: HeaderPlan) -> None:
        super().__init__()
        self.layer, self.causal = layer, plan.causal
        self.axes: Literal[1, 2] = plan.axes
        for part, shape in layer.shapes(plan.axes).items():
            self.register_parameter(part, nn.Parameter(torch.empty(shape)))

    def forward(
        self,
        x: Float[Tensor, "batch inputs *grid"],
        mask: Bool[Tensor, "batch 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch outputs *smaller"]:
        """See :class:`~acme_fleet.messages.header_plan.Layer`."""
        if self.layer.attends:
            scores = self._convolved(x, self.query.unflatten(1, (-1, *(1,) * self.axes)))
            x = attended(x, scores, mask, self.axes, causal=self.causal)
        if self.layer.depthwise:
            x = self._convolved(x, self.depthwise, groups=len(self.layer.inputs))
        return self._convolved(x, self.weight, self.bias, self.layer.stride)

    def _convolved(
        self,
        x: Float[Tensor, "batch inputs *grid"],
        weight: Float[Tensor, "outputs each *kernel"],
        bias: Float[Tensor, " outputs"] | None = None,
        stride: int = 1,
        groups: int = 1,
    ) -> Float[Tensor, "batch outputs *smaller"]:
        kernel = weight.shape[-1]
        if self.causal:  # it pads before the text alone
            x = F.pad(x, (kernel - 1, 0))
        convolve = F.conv1d if self.axes == 1 else F.conv2d
        padding = 0 if self.causal else kernel // 2
        return convolve(x, weight, bias, stride=stride, padding=padding, groups=groups)


class _Sum(nn.Module):
    """Element-wise sum of tensors that may carry different channels.

    A term that lacks channels of the node gets one channel of zeros behind its own, and each of
    the node's channels is then read from its place. Channels are read by index and never written
    by index: PyTorch's ONNX optimiser drops an ``index_add`` whose index has the full range.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        # Plain tensors, no buffers: loaders that build on the meta device fill buffers with
        # arbitrary numbers. A term that has every channel needs no index.
        self.sources = [
            None if term.channels == node.channels else _sources(term.channels, node.channels)
            for term in node.terms
        ]

    def forward(
        self, parts: list[Float[Tensor, "batch _ *grid"]]
    ) -> Float[Tensor, "batch channels *grid"]:
        widened = [
            part if source is None else _widen(part, source)
            for part, source in zip(parts, self.sources, strict=True)
        ]
        return sum(widened[1:], start=widened[0])


def _sources(channels: Channels, wanted: Channels) -> Int[Tensor, " wanted"]:
    """For each wanted channel its place in ``channels``, or the place behind the last one."""
    place = {channel: index for index, channel in enumerate(channels)}
    return torch.tensor([place.get(channel, len(channels)) for channel in wanted], device="cpu")


def _widen(
    part: Float[Tensor, "batch _ *grid"], source: Int[Tensor, " wanted"]
) -> Float[Tensor, "batch wanted *grid"]:
    zeros_behind = (0, 0) * (part.ndim - 2) + (0, 1)
    return F.pad(part, zeros_behind).index_select(1, source.to(part.device))


def positions(wanted: Channels, among: Channels) -> list[int]:
    """The position of each of ``wanted`` in ``among``."""
    place = {channel: index for index, channel in enumerate(among)}
    return [place[channel] for channel in wanted]


def initial_tensors(
    shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator
) -> dict[str, Tensor]:
    """He-normal weights and zero biases, drawn in the order of the names."""
    tensors = {}
    for name in sorted(shapes):
        shape = shapes[name]
        tensors[name] = torch.zeros(shape)
        if len(shape) > 1:
            fan_in = math.prod(shape[1:])
            # The classifier starts small: the pooled token's columns decide first.
            gain = 2.0 if name.startswith("layers.") else 0.01
            tensors[name].normal_(0.0, math.sqrt(gain / fan_in), generator=generator)
    return tensors


def build_header(plan: HeaderPlan, tensors: Mapping[str, Tensor]) -> Header:
    """A header with copies of these weights."""
    with torch.device("meta"), no_init_weights():
        header = Header(plan)
    copies = {name: tensors[name].detach().clone() for name in header.state_dict()}
    header.load_state_dict(copies, assign=True)
    return header.eval()


def prune(header: Header, kept: Mapping[str, Channels]) -> Header:
    """A physically smaller header in which each layer keeps only the channels listed.

    Args:
        header: it is not changed.
        kept: for each layer the channels that remain, a subset of those it has; a layer that is
            not listed keeps what it has.

    Raises:
        ValueError: if a layer would be left without channels or has none of that number.
    """
    plan = header.plan
    merged = {**plan.kept, **{name: tuple(channels) for name, channels in kept.items()}}
    smaller = HeaderPlan.model_validate({**plan.model_dump(), "kept": merged})
    for name, channels in kept.items():
        if gone := set(channels) - set(plan.layers[name].outputs):
            raise ValueError(f"{name} has no channels {sorted(gone)} any more")
    state, tensors = header.state_dict(), {}
    for name, layer in smaller.layers.items():
        old = plan.layers[name]
        rows = torch.tensor(positions(layer.outputs, old.outputs))
        columns = torch.tensor(positions(layer.inputs, old.inputs))
        tensors[f"layers.{name}.weight"] = state[f"layers.{name}.weight"][rows][:, columns]
        tensors[f"layers.{name}.bias"] = state[f"layers.{name}.bias"][rows]
        if layer.depthwise:
            tensors[f"layers.{name}.depthwise"] = state[f"layers.{name}.depthwise"][columns]
        if layer.attends:
            tensors[f"layers.{name}.query"] = state[f"layers.{name}.query"][:, columns]
    for name, node in smaller.ends.items():
        columns = torch.tensor(positions(node.channels, plan.ends[name].channels))
        weight = f"classifier.{name}.weight"
        tensors[weight] = state[weight][:, columns]
    for name in smaller.shapes().keys() - tensors.keys():  # the pooled token's
        tensors[name] = state[name]
    return build_header(smaller, tensors)


def answering_as(
    tensors: Mapping[str, Tensor], classifier: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of a header, hand-made or searched, that answers as a linear classifier at first.

    Args:
        tensors: of the header. Its layers' are kept, and what the classifier reads of them is zero.
        classifier: ``weight`` and ``bias``, on the pooled vector. A causal header, which has no
            pooled vector, changes nothing at first.
    """
    changed = {
        name: torch.zeros_like(tensor) if name.startswith("classifier.") else tensor
        for name, tensor in tensors.items()
    }
    if "classifier.pooled.weight" not in changed:
        return changed
    return changed | {f"classifier.pooled.{part}": x.clone() for part, x in classifier.items()}


class LinearHeader(nn.Module):
    """A plain linear header on the pooled token, with the same inputs as :class:`Header`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        classes, hidden = tensors["weight"].shape
        self.linear = nn.Linear(hidden, classes)
        self.linear.load_state_dict({part: tensors[part].clone() for part in ("weight", "bias")})

    def forward(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Logits; the feature maps are not used."""
        return self.linear(pooled)


class LinearChange(LinearHeader):
    """A linear map of each token's last hidden state that is added to it, in a header's place."""

    def forward(
        self,
        last: Float[Tensor, "batch hidden tokens"],
        penultimate: Float[Tensor, "batch hidden tokens"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch hidden tokens"]:
        """The changed hidden states."""
        return clear_padding(last + self.linear(last.transpose(1, 2)).transpose(1, 2), mask)


class NoHeader(nn.Module):
    """A causal header that changes nothing, for a backbone on its own."""

    def forward(
        self,
        last: Float[Tensor, "batch hidden tokens"],
        penultimate: Float[Tensor, "batch hidden tokens"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch hidden tokens"]:
        """The hidden states as they are."""
        return last


def linear_header(tensors: Mapping[str, Tensor], *, causal: bool) -> LinearHeader:
    """The plain linear header in the place of a searched one."""
    return LinearChange(tensors) if causal else LinearHeader(tensors)
