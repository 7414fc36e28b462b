"""What a backbone gives to a header, and the models that put both together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from acme_fleet.data.samples import Samples
from acme_fleet.models.families import family_of


@dataclass(frozen=True)
class Activations:
    """One forward pass of a backbone.

    Attributes:
        embeddings: shape ``(batch, tokens, hidden)``, what enters the first layer.
        hidden: outputs of the layers, each ``(batch, tokens, hidden)``.
        final: the last hidden state after the backbone's final normalisation.
        pooled: the token that stands for the whole input, shape ``(batch, hidden)``.
    """

    embeddings: Tensor
    hidden: tuple[Tensor, ...]
    final: Tensor
    pooled: Tensor


def activations(backbone: PreTrainedModel, inputs: dict[str, Tensor]) -> Activations:
    """Run a backbone and name its outputs."""
    outputs = backbone(**inputs, output_hidden_states=True)
    final = outputs.last_hidden_state
    return Activations(
        embeddings=outputs.hidden_states[0],
        hidden=tuple(outputs.hidden_states[1:]),
        final=final,
        pooled=_pooled(final, inputs.get("attention_mask"), backbone.config),
    )


def _pooled(final: Tensor, mask: Tensor | None, config: PreTrainedConfig) -> Tensor:
    if family_of(config).pooled == "first":
        return final[:, 0]
    if mask is None:
        return final[:, -1]
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).argmax(dim=1)  # right- or left-padded alike
    return final[torch.arange(len(final), device=mask.device), last]


def feature_maps(backbone: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The header's inputs: two feature maps and the pooled token.

    The penultimate layer's hidden state has passed no final normalisation; it is normalised here
    without parameters, so that both maps have one scale. Padded tokens are zero in both.

    Returns:
        ``last`` and ``penultimate`` of shape ``(batch, hidden, rows, columns)`` for images and
        ``(batch, hidden, tokens)`` for sequences, and ``pooled`` of shape ``(batch, hidden)``.
    """
    run = activations(backbone, inputs)
    before = run.hidden[-2] if len(run.hidden) > 1 else run.embeddings
    before = F.layer_norm(before, before.shape[-1:])
    config, mask = backbone.config, inputs.get("attention_mask")
    return {
        "last": _as_map(_unpadded(run.final, mask), config),
        "penultimate": _as_map(_unpadded(before, mask), config),
        "pooled": run.pooled,
    }


def _unpadded(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens if mask is None else tokens * mask[:, :, None].to(tokens.dtype)


def _as_map(tokens: Tensor, config: PreTrainedConfig) -> Tensor:
    family = family_of(config)
    channels_first = tokens[:, family.prefix_tokens :].transpose(1, 2)
    if family.grid == "sequence":
        return channels_first
    side = grid_side(config)
    return channels_first.unflatten(2, (side, side))


def grid_side(config: PreTrainedConfig) -> int:
    """Patches along one side of a square image."""
    return config.image_size // config.patch_size


def map_axes(config: PreTrainedConfig) -> Literal[1, 2]:
    """Axes of a feature map: 2 for images' patches, 1 for texts' tokens."""
    return 2 if family_of(config).grid == "image" else 1


def patches(config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> int:
    """p of Eq. 2: patches of an image, or tokens of a text."""
    return inputs["input_ids"].shape[1] if map_axes(config) == 1 else grid_side(config) ** 2


@torch.no_grad()
def feature_samples(backbone: PreTrainedModel, samples: Samples, batch_size: int = 256) -> Samples:
    """Features of a frozen backbone, computed once: samples whose inputs are a header's inputs."""
    backbone.eval()
    batches = [feature_maps(backbone, batch.inputs) for batch in samples.batches(batch_size)]
    return Samples(
        inputs={name: torch.cat([batch[name] for batch in batches]) for name in batches[0]},
        labels=samples.labels,
        stored_bytes=samples.stored_bytes,
    )


class Classifier(nn.Module):
    """The reference's form, θ = (θ^B, θ^H): a backbone and a linear header on its pooled token."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)``; inputs are moved to where the weights are."""
        return self.head(activations(self.backbone, moved(inputs, self.backbone.device)).pooled)


class CustomizedModel(nn.Module):
    """What ships to a device: a small backbone and a searched header, a plain PyTorch module."""

    def __init__(self, backbone: PreTrainedModel, header: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.header = header

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)``; inputs are moved to where the weights are."""
        return self.header(**feature_maps(self.backbone, moved(inputs, self.backbone.device)))


def moved(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Inputs where the weights are."""
    return {name: values.to(device) for name, values in inputs.items()}
