"""δ(θ0, w, d): sub-networks of one set of weights, and small models cut from it.

Once heads, neurons and channels are ordered by importance (:func:`reorder`), a narrower network is
a prefix of the wide one. A *view* of the shared weights (:func:`subnetwork`) trains and evaluates a
sub-network in place; :func:`extract` copies the view into an ordinary small module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from acme_fleet.config.devices import Precision
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.configuration import accepted
from acme_fleet.models.backbone.precision import rounded
from acme_fleet.models.families import (
    ELASTIC,
    Dimensions,
    Family,
    dimensions,
    family_of,
    is_elastic,
)
from acme_fleet.models.family import LM_HEAD

BY_LAYER = ("layer_types", "no_rope_layers")
"""Keys of a configuration with one entry for each layer, beside those of elastic models."""


@dataclass(frozen=True)
class Architecture:
    """A backbone relative to its reference.

    Attributes:
        layers: indices of the reference's layers that are kept, ascending.
        heads, neurons: how many are kept in each of them.
        hidden: how many channels of the residual stream are kept, the same in all; none keeps the
            reference's.
        precision: of the weights.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    hidden: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.heads) == len(self.neurons) > 0:
            raise ValueError(f"layers, heads and neurons differ in length: {self}")
        if list(self.layers) != sorted(set(self.layers)) or min(self.heads + self.neurons) < 1:
            raise ValueError(f"layers must ascend and every layer keeps at least one: {self}")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"of the hidden size at least one channel is kept: {self}")


def kept_layers(depth: int, layers: int) -> tuple[int, ...]:
    """The ``depth`` layers that are kept of ``layers``: evenly spread, the last one always.

    Student layer i (from 1) stands for reference layer ceil(i · layers / depth).

    Raises:
        ValueError: if depth is not in 1..layers.
    """
    if not 1 <= depth <= layers:
        raise ValueError(f"depth {depth} is not in 1..{layers}")
    return tuple(math.ceil(i * layers / depth) - 1 for i in range(1, depth + 1))


def kept_units(width: float, units: int) -> int:
    """round(width · units), halves up, at least one."""
    return max(1, math.floor(width * units + 0.5))


def architecture(sizes: Dimensions, width: float, depth: int, hidden: float = 1.0) -> Architecture:
    """The uniform architecture of δ(θ0, w, d); ``hidden`` is the share of the hidden size."""
    layers, channels = kept_layers(depth, sizes.layers), kept_units(hidden, sizes.hidden)
    return Architecture(
        layers=layers,
        heads=(kept_units(width, sizes.heads),) * depth,
        neurons=(kept_units(width, sizes.neurons),) * depth,
        hidden=None if channels == sizes.hidden else channels,
    )


def elastic_config(config: PreTrainedConfig, arch: Architecture) -> PreTrainedConfig:
    """The configuration of the small model; ``config`` is the reference's.

    Raises:
        FleetError: if the reference's lacks a number that its family needs.
    """
    config_class, _ = ELASTIC[config.model_type.removeprefix("acme_")]
    content, family = described(config), family_of(config)
    if wrong := family.wrong_positions(config):
        raise FleetError(wrong)
    if family.first_norm is not None:
        content["first_layer_norm"] = arch.layers[0] > 0 or content.get("first_layer_norm", False)
    content[layers_key(config)] = len(arch.layers)
    for name in BY_LAYER:
        if content.get(name):
            content[name] = [content[name][i] for i in arch.layers]
    content["heads_per_layer"] = list(arch.heads)
    content["neurons_per_layer"] = list(arch.neurons)
    content["precision"] = arch.precision
    if arch.hidden is not None:
        content[config.attribute_map.get("hidden_size", "hidden_size")] = arch.hidden
        content["head_dim"] = dimensions(config).head_dim
        if family.scaled_words is not None:
            content.setdefault("embed_scale", config.hidden_size**0.5)
    return config_class.from_dict(content)


def described(config: PreTrainedConfig) -> dict[str, Any]:
    """The keys of a configuration that decide a backbone's function; no path, no class names.

    Raises:
        FleetError: if a value is out of the bounds that every reader has.
    """
    family = config.model_type.removeprefix("acme_")
    return accepted(family, config.to_dict(), f"the {family}'s configuration")


def layers_key(config: PreTrainedConfig) -> str:
    """The configuration's name for the number of layers."""
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def is_full_width(config: PreTrainedConfig) -> bool:
    """True if every layer of an elastic configuration has all heads and neurons."""
    sizes = dimensions(config)
    return (config.heads_per_layer, config.neurons_per_layer) == (
        [sizes.heads] * sizes.layers,
        [sizes.neurons] * sizes.layers,
    )


def build(config: PreTrainedConfig, device: str | torch.device = "meta") -> PreTrainedModel:
    """An elastic model of this configuration; on ``meta`` it has shapes but no weights."""
    _, model_class = ELASTIC[config.model_type.removeprefix("acme_")]
    with torch.device(device):
        return model_class(config).eval()


def as_elastic(
    model: PreTrainedModel, language: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """The same function as an elastic model of full width and depth (weights are copied).

    Args:
        model: of a known family.
        language: further tensors by name, of a decoder whose configuration has a language head.
    """
    sizes = dimensions(model.config)
    config = elastic_config(model.config, architecture(sizes, 1.0, sizes.layers))
    elastic, state = build(config, "cpu"), {**model.state_dict(), **(language or {})}
    own = family_of(config).own
    if own is not None and not is_elastic(model.config):
        state = own.tensors(state)
    wanted = elastic.state_dict().keys()
    elastic.load_state_dict({k: v for k, v in state.items() if k in wanted})
    return elastic


def with_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of a text model that knows these tokens alone, numbered anew in their order.

    Raises:
        FleetError: if the model has no table of words, one that lacks a token, or positions that
            are counted from a padding token that is not kept.
    """
    words = model.get_input_embeddings()
    if not isinstance(words, nn.Embedding) or max(kept) >= words.num_embeddings:
        known = words.num_embeddings if isinstance(words, nn.Embedding) else 0
        raise FleetError(
            f"vocabulary: the tokenizer has the token {max(kept)}, the checkpoint's model "
            f"knows {known}, from 0"
        )
    content, pad = described(model.config), model.config.pad_token_id
    content["vocab_size"] = len(kept)
    content["pad_token_id"] = kept.index(pad) if pad in kept else None
    state, positions = model.state_dict(), family_of(model.config).positions
    if positions is not None:  # they are counted from the padding token's number
        if pad not in kept:
            raise FleetError(f"vocabulary: the padding token {pad} is not kept")
        moved = pad - kept.index(pad)
        state[f"{positions}.weight"] = state[f"{positions}.weight"][moved:]
        content["max_position_embeddings"] -= moved
    small = build(type(model.config).from_dict(content), "cpu")
    name = next(name for name, module in model.named_modules() if module is words)
    for table in (name, LM_HEAD):
        if (rows := state.get(f"{table}.weight")) is not None:
            state[f"{table}.weight"] = rows[torch.tensor(kept)]
    small.load_state_dict(state)
    return small


def _first(
    value: Shaped[Tensor, "rows ..."], parts: Sequence[int], kept: Sequence[int]
) -> Shaped[Tensor, "kept ..."]:
    """The first rows of each part of a tensor, one part behind the other; of one part a view."""
    firsts = [part[:rows] for part, rows in zip(value.split(list(parts)), kept, strict=True)]
    return firsts[0] if len(firsts) == 1 else torch.cat(firsts)


def subnetwork(
    state: Mapping[str, Tensor], config: PreTrainedConfig, arch: Architecture
) -> dict[str, Tensor]:
    """Views of the reference's weights that form a sub-network; gradients reach the reference.

    Where one Linear has several parts, what is kept of it is a copy.

    Args:
        state: parameters and buffers of the reordered reference by name.
        config: the reference's configuration.
        arch: which layers, how many heads and neurons of each, and how many channels.

    Returns:
        What :func:`build` of ``elastic_config(config, arch)`` has as parameters and buffers.
    """
    family, sizes = family_of(config), dimensions(config)
    prefix = family.layers + "."
    if arch.hidden is not None:
        state = {
            name: value if axis is None else value.narrow(axis, 0, arch.hidden)
            for name, value in state.items()
            for axis in (family.stream_axis(name),)
        }
    views = {name: value for name, value in state.items() if not name.startswith(prefix)}
    for new, (old, heads, neurons) in enumerate(
        zip(arch.layers, arch.heads, arch.neurons, strict=True)
    ):
        had = config.heads_per_layer[old], config.neurons_per_layer[old]
        parts, kept = family.outputs(sizes, *had), family.outputs(sizes, heads, neurons)
        entering = family.inputs(sizes, heads, neurons)
        inside = f"{prefix}{old}."
        for name, value in state.items():
            if not name.startswith(inside):
                continue
            local = name.removeprefix(inside)
            module = local.rpartition(".")[0]
            if module in kept:
                value = _first(value, parts[module], kept[module])
            elif module in entering and value.ndim > 1:
                value = value[:, : entering[module]]
            views[f"{prefix}{new}.{local}"] = value
    return views


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers by name, attached to the graph."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def extract(model: PreTrainedModel, arch: Architecture) -> PreTrainedModel:
    """A physically small copy of a sub-network, rounded to its precision; no masks."""
    small = build(elastic_config(model.config, arch), "cpu")
    views = subnetwork(model.state_dict(), model.config, arch)
    own = {name: views[name] for name in small.state_dict()}
    small.load_state_dict(own if arch.precision == "float32" else rounded(own, arch.precision))
    return small


@torch.no_grad()
def reorder(
    model: PreTrainedModel,
    head_importance: Float[Tensor, "layers heads"],
    neuron_importance: Float[Tensor, "layers neurons"],
    channel_importance: Float[Tensor, " hidden"] | None = None,
) -> PreTrainedModel:
    """Order heads and neurons of every layer, most important first, without changing the function.

    With ``channel_importance`` the channels of the residual stream are ordered too, the same in all
    layers. The hidden states are then permuted; see :func:`reorder_head` for what reads them.

    Args:
        model: a backbone of full width; it is not changed.
        head_importance: for grouped attention a head is a group.
        neuron_importance: of each neuron of the MLPs.
        channel_importance: of each channel; none leaves them where they are.
    """
    reordered = build(model.config, "cpu")
    reordered.load_state_dict(model.state_dict())
    family, sizes = family_of(model.config), dimensions(model.config)
    layers = reordered.get_submodule(family.layers)
    for layer, *importance in zip(
        layers.children(), head_importance, neuron_importance, strict=True
    ):
        _reorder_layer(layer, family, sizes, *importance)
    if channel_importance is not None:
        order = channel_importance.argsort(descending=True, stable=True)
        for name, parameter in reordered.named_parameters():
            if (axis := family.stream_axis(name)) is not None:
                parameter.copy_(parameter.index_select(axis, order))
    return reordered


def _reorder_layer(
    layer: nn.Module,
    family: Family,
    sizes: Dimensions,
    heads: Float[Tensor, " heads"],
    neurons: Float[Tensor, " neurons"],
) -> None:
    order, units = (of.argsort(descending=True, stable=True) for of in (heads, neurons))
    keys = _expand(order, sizes.head_dim)
    each = _expand(order, sizes.queries_per_head)
    queries = _expand(each, sizes.head_dim)
    rows: dict[str, list[Tensor]] = {}
    parts = ((family.query, queries), (family.key, keys), (family.value, keys))
    for name, part in (*parts, *((name, units) for name in family.neurons_in)):
        before = rows.setdefault(name, [])
        before.append(part + sum(map(len, before)))
    for name, found in rows.items():
        _permute(layer.get_submodule(name), rows=torch.cat(found))
    columns = {family.output: queries, family.neurons_out: units}
    for name, found in (columns | dict.fromkeys(family.head_tables, each)).items():
        _permute(layer.get_submodule(name), columns=found)


@torch.no_grad()
def reorder_head(head: nn.Linear, channel_importance: Float[Tensor, " hidden"]) -> nn.Linear:
    """A copy of a classifier for the pooled vectors of a backbone whose channels are re-ordered.

    Pooled vectors are one or two hidden states in a row.
    """
    order = channel_importance.argsort(descending=True, stable=True)
    states = head.in_features // len(order)
    columns = torch.cat([order + i * len(order) for i in range(states)])
    head = copy.deepcopy(head)
    _permute(head, columns=columns)
    return head


def _expand(order: Int[Tensor, " units"], size: int) -> Int[Tensor, " channels"]:
    """Indices of the channels of units that are ``size`` channels each."""
    return (order[:, None] * size + torch.arange(size)).flatten()


def _permute(
    linear: nn.Module,
    rows: Int[Tensor, " rows"] | None = None,
    columns: Int[Tensor, " columns"] | None = None,
) -> None:
    assert isinstance(linear, nn.Linear | nn.Embedding)
    if rows is not None:
        for parameter in linear.parameters():
            parameter.copy_(parameter[rows])
    if columns is not None:
        linear.weight.copy_(linear.weight[:, columns])
