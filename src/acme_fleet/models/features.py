"""Features between a backbone and a header, and the models that join both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.samples import Samples
from acme_fleet.messages.header_plan import Genotype, HeaderPlan
from acme_fleet.models.families import family_of
from acme_fleet.models.family import LM_HEAD, language_head_of
from acme_fleet.models.padding import by_length, clear_padding, real_first
from acme_fleet.models.pooling import pool, pooled_size
from acme_fleet.tasks.base import Task


@dataclass(frozen=True)
class Activations:
    """One forward pass of a backbone; padding stands behind the text, wherever it stood before.

    Attributes:
        embeddings: the input of the first layer.
        hidden: outputs of the layers.
        final: the last hidden state after the backbone's final normalisation.
        pooled: the vector that stands for the whole input, see :mod:`acme_fleet.models.pooling`;
            zero for a text without any token.
        mask: true for real tokens; none if the inputs had no mask.
        attended: what the family's own attention makes of all tokens; none if it has none.
    """

    embeddings: Float[Tensor, "batch tokens hidden"]
    hidden: tuple[Float[Tensor, "batch tokens hidden"], ...]
    final: Float[Tensor, "batch tokens hidden"]
    pooled: Float[Tensor, "batch pooled"]
    mask: Bool[Tensor, "batch tokens"] | None = None
    attended: Float[Tensor, "batch hidden"] | None = None


def language_weight(config: PreTrainedConfig) -> str:
    """The name of the tensor that is a language model's head, of shape ``(words, hidden)``.

    Raises:
        ValueError: if the model has no language head.
    """
    words = family_of(config).words
    match language_head_of(config):
        case "own":
            return f"{LM_HEAD}.weight"
        case "tied" if words is not None:
            return f"{words}.weight"
    raise ValueError(f"a {config.model_type} without a language head was asked for it")


def language_logits(
    backbone: PreTrainedModel, states: Float[Tensor, "batch hidden tokens"]
) -> Float[Tensor, "batch words tokens"]:
    """Logits of a language model's head for each token's last hidden state."""
    weight = backbone.get_parameter(language_weight(backbone.config))
    return F.linear(states.transpose(1, 2), weight).transpose(1, 2)


def judging(task: Task, backbone: PreTrainedModel) -> Task:
    """The task as it judges what headers of a backbone give."""
    if language_head_of(backbone.config) is None:
        return task
    return task.through(backbone.get_parameter(language_weight(backbone.config)))


class FeatureSizes(NamedTuple):
    """Sizes of a header's inputs, see :class:`~acme_fleet.messages.header_plan.HeaderPlan`."""

    hidden: int
    axes: Literal[1, 2]
    pooled: int


def activations(
    backbone: PreTrainedModel, inputs: dict[str, Shaped[Tensor, "batch ..."]]
) -> Activations:
    """Run a backbone and name its outputs.

    What it gives for a text does not depend on the padding, before it or behind it.

    Raises:
        ValueError: if ``attention_mask`` has not the shape of ``input_ids``, ``(batch, tokens)``.
    """
    inputs, mask = real_first(inputs)
    if mask is not None:
        del inputs["attention_mask"]
        if not _is_causal(backbone.config):
            # Attention to no token at all is not defined; a text without tokens sees one.
            first = torch.arange(mask.shape[1], device=mask.device) == 0
            inputs["attention_mask"] = (mask | first).long()
    outputs, family = backbone(**inputs, output_hidden_states=True), family_of(backbone.config)
    final = outputs.last_hidden_state
    if family.final_norm is not None:
        final = backbone.get_submodule(family.final_norm)(final)
    attended = None if family.pooler is None else outputs.pooler_output
    return Activations(
        embeddings=outputs.hidden_states[0],
        hidden=tuple(outputs.hidden_states[1:]),
        final=final,
        pooled=pooled_by(backbone.config.pooling, final, mask, backbone.config, attended),
        mask=mask,
        attended=attended,
    )


def _is_causal(config: PreTrainedConfig) -> bool:
    """True if a token sees only those before it, and so never the padding behind the text.

    No mask is passed then: with a sliding window, padded positions would see no token at all.
    """
    bidirectional = getattr(config, "use_bidirectional_attention", False)
    return family_of(config).pooled == "last" and not bidirectional


def pooled_by(
    pooling: Pooling,
    final: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"] | None,
    config: PreTrainedConfig,
    attended: Float[Tensor, "batch hidden"] | None = None,
) -> Float[Tensor, "batch pooled"]:
    """The vector that stands for the whole input; zero for a text without any token."""
    if pooling == "attention":
        assert attended is not None  # by ``pool_by``
        return attended
    family = family_of(config)
    # A text's mean has its special tokens, also where no mask says that all of them are real.
    vector = pool(final, mask, pooling, family.prefix_tokens if family.grid == "image" else 0)
    return vector if mask is None else clear_padding(vector, mask[:, :1])


def penultimate_state(
    states: tuple[Float[Tensor, "batch tokens hidden"], ...],
) -> Float[Tensor, "batch tokens hidden"]:
    """The state before the last layer, in the scale of one that has passed the final norm.

    Args:
        states: the input of the first layer, and what leaves each layer.
    """
    return F.layer_norm(states[-2], states[-2].shape[-1:])


def feature_maps(
    backbone: PreTrainedModel, inputs: dict[str, Shaped[Tensor, "batch ..."]]
) -> dict[str, Shaped[Tensor, "batch ..."]]:
    """The header's inputs: two feature maps, the pooled token, and a text's mask.

    The penultimate layer's hidden state has passed no final normalisation; it is normalised here
    without parameters, so that both maps have one scale. Padded tokens are zero in both. A text
    without a token beside the family's prefix has one padded position.

    Returns:
        ``last`` and ``penultimate`` of shape ``(batch, hidden, rows, columns)`` for images and
        ``(batch, hidden, tokens)`` for sequences, and ``pooled`` of shape ``(batch, pooled)``.
        Of inputs with an ``attention_mask`` also ``mask`` of shape ``(batch, 1, tokens)``, true
        for real tokens; special tokens behind the prefix, as [SEP], are real.
    """
    run = activations(backbone, inputs)
    before = penultimate_state((run.embeddings, *run.hidden))
    family = family_of(backbone.config)
    maps = {
        name: tokens[:, family.prefix_tokens :].transpose(1, 2)
        for name, tokens in (("last", run.final), ("penultimate", before))
    }
    if family.grid == "image":
        side = grid_side(backbone.config)
        maps = {name: patches.unflatten(2, (side, side)) for name, patches in maps.items()}
        return {**maps, "pooled": run.pooled}
    mask = None if run.mask is None else run.mask[:, None, family.prefix_tokens :]
    if run.final.shape[1] == family.prefix_tokens:
        maps = {name: F.pad(tokens, (0, 1)) for name, tokens in maps.items()}
        mask = torch.zeros(len(run.final), 1, 1, dtype=torch.bool, device=run.final.device)
    if mask is None:
        return {**maps, "pooled": run.pooled}
    maps = {name: clear_padding(tokens, mask) for name, tokens in maps.items()}
    return {**maps, "pooled": run.pooled, "mask": mask}


def grid_side(config: PreTrainedConfig) -> int:
    """Patches along one side of a square image."""
    return config.image_size // config.patch_size


def map_axes(config: PreTrainedConfig) -> Literal[1, 2]:
    """Axes of a feature map: 2 for images' patches, 1 for texts' tokens."""
    return 2 if family_of(config).grid == "image" else 1


def feature_sizes(config: PreTrainedConfig, hidden: int | None = None) -> FeatureSizes:
    """Sizes of the features that a backbone of this configuration gives, cut to a hidden size.

    A language model's headers are causal: they read no pooled vector.
    """
    size: int = config.hidden_size if hidden is None else hidden
    if language_head_of(config) is not None:
        return FeatureSizes(size, 1, 0)
    return FeatureSizes(size, map_axes(config), pooled_size(config.pooling, size))


def patches(config: PreTrainedConfig, inputs: Mapping[str, Shaped[Tensor, "batch ..."]]) -> int:
    """p of Eq. 2: patches of an image, or tokens of a text."""
    return inputs["input_ids"].shape[1] if map_axes(config) == 1 else grid_side(config) ** 2


@torch.no_grad()
def feature_samples(
    backbone: PreTrainedModel,
    samples: Samples,
    batch_size: int = 256,
    most_bytes: int | None = None,
    done: Callable[[int], None] | None = None,
) -> Samples:
    """Features of a frozen backbone, computed once: samples whose inputs are a header's inputs.

    Samples that are features already stay as they are. Features of a language model that are more
    than ``most_bytes`` in all are not kept: they are computed whenever a batch is asked for.
    ``done`` is told the size of each batch that is done.
    """
    if "pooled" in samples.inputs or samples.computed is not None:
        return samples
    backbone.eval()
    if most_bytes is not None and language_bytes(backbone, samples) > most_bytes:

        @torch.no_grad()
        def computed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return feature_maps(backbone, moved(inputs, backbone.device))

        return replace(samples, computed=computed)
    batches, back = by_length(samples, batch_size)
    maps = []
    for batch in batches:
        maps.append(feature_maps(backbone, batch.inputs))
        if done is not None:
            done(len(batch))
    if back is not None:
        tokens = samples.inputs["attention_mask"].shape[1]
        room = max(1, tokens - family_of(backbone.config).prefix_tokens)
        maps = [_as_long(batch, room) for batch in maps]
    inputs = {name: torch.cat([batch[name] for batch in maps]) for name in maps[0]}
    if back is not None:
        inputs = {name: rows[back] for name, rows in inputs.items()}
    return samples.with_inputs(inputs)


def language_bytes(backbone: PreTrainedModel, samples: Samples) -> int:
    """Bytes of a language model's features of texts: two states of each token; 0 of others."""
    if language_head_of(backbone.config) is None:
        return 0
    return 4 * 2 * backbone.config.hidden_size * samples.inputs["input_ids"].numel()


def _as_long(maps: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Maps and mask of texts with zeros behind them, so that batches of all lengths are alike."""
    return {
        name: values if name == "pooled" else F.pad(values, (0, tokens - values.shape[-1]))
        for name, values in maps.items()
    }


class Classifier(nn.Module):
    """The reference's form, θ = (θ^B, θ^H): a backbone and a linear header on its pooled token."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, **inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits; inputs are moved to where the weights are."""
        return self.head(activations(self.backbone, moved(inputs, self.backbone.device)).pooled)

    def header_plan(self, genotype: Genotype, hidden: int | None = None) -> HeaderPlan:
        """The unpruned header of a genotype in the head's place, after a cut to a hidden size."""
        sizes = feature_sizes(self.backbone.config, hidden)
        classes = self._header_outputs(sizes.hidden)
        return HeaderPlan(genotype=genotype, classes=classes, **sizes._asdict())

    def with_backbone(self, backbone: PreTrainedModel, head: nn.Linear) -> Classifier:
        """The same kind of model of other parts."""
        return Classifier(backbone, head)

    def _header_outputs(self, hidden: int) -> int:
        return self.head.out_features


class LanguageModel(Classifier):
    """A decoder with its language head, which is a part of the backbone: ``head`` has no row."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        with torch.device("meta"):  # a matrix without rows is not initialised
            head = nn.Linear(backbone.config.hidden_size, 1, bias=False)
        head.weight = nn.Parameter(torch.empty(0, backbone.config.hidden_size))
        head.out_features = 0
        super().__init__(backbone, head)

    def forward(self, **inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch words tokens"]:
        """Logits for the token after each; inputs are moved to where the weights are."""
        return self.logits_from(0, inputs)

    def logits_from(
        self, first: int, inputs: dict[str, Shaped[Tensor, "batch ..."]]
    ) -> Float[Tensor, "batch words last"]:
        """The same of tokens from the ``first`` on: the head costs more than a small backbone."""
        run = activations(self.backbone, moved(inputs, self.backbone.device))
        return language_logits(self.backbone, run.final[:, first:].transpose(1, 2))

    def with_backbone(self, backbone: PreTrainedModel, head: nn.Linear) -> LanguageModel:
        """See the base class."""
        return LanguageModel(backbone)

    def _header_outputs(self, hidden: int) -> int:
        return hidden


class CustomizedModel(nn.Module):
    """The model of a device: a small backbone and a searched header, a plain PyTorch module."""

    def __init__(self, backbone: PreTrainedModel, header: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.header = header

    def forward(
        self, **inputs: Shaped[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch scores *tokens"]:
        """Logits; inputs are moved to where the weights are."""
        answers = self.header(**feature_maps(self.backbone, moved(inputs, self.backbone.device)))
        if language_head_of(self.backbone.config) is None:
            return answers
        return language_logits(self.backbone, answers)


def moved(
    inputs: Mapping[str, Shaped[Tensor, "batch ..."]], device: torch.device
) -> dict[str, Shaped[Tensor, "batch ..."]]:
    """Inputs where the weights are."""
    return {name: values.to(device) for name, values in inputs.items()}
