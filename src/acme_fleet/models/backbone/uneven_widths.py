"""Uneven widths: the size of a uniform backbone, spent on the layers where it matters most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.models.backbone.elastic import Architecture
from acme_fleet.models.families import dimensions, family_of

_LEAST_NEURONS = 0.25
"""Share of the uniform number of neurons that every layer keeps, beside one head."""


@dataclass(frozen=True)
class Importance:
    """Importance of each unit of a reordered reference (Eq. 8).

    Attributes:
        heads: most important first in each layer.
        neurons: the same.
    """

    heads: Float[Tensor, "layers heads"]
    neurons: Float[Tensor, "layers neurons"]

    def __post_init__(self) -> None:
        for values in (self.heads, self.neurons):
            if bool((values.diff(dim=1) > 0).any()):
                raise ValueError("importance must descend in each layer, as in a reordered model")

    @staticmethod
    def sorted(
        heads: Float[Tensor, "layers heads"], neurons: Float[Tensor, "layers neurons"]
    ) -> Importance:
        """The importance of what re-ordering by these values gives."""
        return Importance(
            *(values.sort(dim=1, descending=True).values for values in (heads, neurons))
        )


@dataclass(frozen=True)
class UnitParams:
    """Parameters that one more head, and one more neuron, add to a layer."""

    head: int
    neuron: int

    @staticmethod
    def of(backbone: PreTrainedModel, hidden: int | None = None) -> UnitParams:
        """Count them in a backbone cut to a hidden size; all its layers are alike."""
        family, sizes = family_of(backbone.config), dimensions(backbone.config)
        layer = next(backbone.get_submodule(family.layers).children())
        hidden = hidden or sizes.hidden

        def row(linear: str) -> int:
            """Parameters of one output: its weights and, where there is one, its bias."""
            return sum(
                hidden if p.ndim > 1 else 1 for p in layer.get_submodule(linear).parameters()
            )

        query = sizes.queries_per_head * (row(family.query) + hidden)
        tables = [layer.get_submodule(name) for name in family.head_tables]
        columns = sum(len(cast("nn.Embedding", table).weight) for table in tables)
        return UnitParams(
            head=sizes.head_dim * (query + row(family.key) + row(family.value))
            + sizes.queries_per_head * columns,
            neuron=sum(map(row, family.neurons_in)) + hidden,
        )


def global_architecture(
    uniform: Architecture, importance: Importance, params: UnitParams
) -> Architecture:
    """Heads and neurons by one ranking over all layers, within a uniform architecture's size.

    Units are ranked by importance per parameter and taken as long as they fit; each layer keeps
    one head and a quarter of the uniform neurons in any case. What is kept in a layer is a
    prefix, as in the uniform architecture. At most one neuron's parameters are left over.

    Args:
        uniform: sets the layers and the number of parameters.
        importance: of the reference's units.
        params: what a unit costs.
    """
    heads = [1] * len(uniform.layers)
    neurons = [max(1, int(count * _LEAST_NEURONS)) for count in uniform.neurons]
    left = params.head * (sum(uniform.heads) - sum(heads))
    left += params.neuron * (sum(uniform.neurons) - sum(neurons))
    rows = list(uniform.layers)
    worth_of_heads = importance.heads[rows] / params.head
    worth_of_neurons = importance.neurons[rows] / params.neuron
    ranking = torch.cat([worth_of_heads.flatten(), worth_of_neurons.flatten()])
    for unit in ranking.argsort(descending=True, stable=True).tolist():
        kept, cost, columns = heads, params.head, worth_of_heads.shape[1]
        if unit >= worth_of_heads.numel():
            unit -= worth_of_heads.numel()
            kept, cost, columns = neurons, params.neuron, worth_of_neurons.shape[1]
        layer, place = divmod(unit, columns)
        if place == kept[layer] and cost <= left:
            kept[layer] += 1
            left -= cost
    return replace(uniform, heads=tuple(heads), neurons=tuple(neurons))
