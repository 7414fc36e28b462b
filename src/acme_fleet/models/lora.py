"""LoRA (Hu et al., 2022): low-rank changes of a frozen decoder's last layers, a header's rival."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.models.families import family_of
from acme_fleet.models.features import LanguageModel


class LoRALinear(nn.Module):
    """A frozen Linear plus B·A; B is zero at first."""

    def __init__(self, frozen: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.normal_(self.down, std=frozen.in_features**-0.5, generator=generator)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """W·x + B·A·x."""
        return self.frozen(x) + x @ self.down.T @ self.up.T


def with_lora(
    backbone: PreTrainedModel, rank: int, layers: int, generator: torch.Generator
) -> LanguageModel:
    """A language model whose queries and values can be changed in its last ``layers``.

    All else is frozen. The backbone is copied.
    """
    copied = copy.deepcopy(backbone).requires_grad_(False)
    family = family_of(copied.config)
    for layer in list(copied.get_submodule(family.layers).children())[-layers:]:
        for name in (family.query, family.value):
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            layer.set_submodule(name, LoRALinear(linear, rank, generator))
    model = LanguageModel(copied)
    model.head.requires_grad_(False)
    return model
