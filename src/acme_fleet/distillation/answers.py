"""A teacher's answers to samples that stay as they are: asked once, for all epochs (METHOD 13)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.features import Activations
from acme_fleet.models.padding import by_length
from acme_fleet.training.precision import Numbers, mixed_precision

MOST_BYTES = 10**9
"""Memory that answers may take; a teacher whose answers take more is asked in every epoch."""


@dataclass(frozen=True)
class Answers:
    """Logits, pooled vectors, embeddings and some layers' states of all samples.

    Attributes:
        states: by layer, of real tokens alone, one text behind the other; -1 are the embeddings.
        starts: where a sample's tokens begin.
        layers: of the teacher.
    """

    states: dict[int, Float[Tensor, "real channels"]]
    pooled: Float[Tensor, "samples pooled"]
    logits: Float[Tensor, "samples classes"]
    starts: Int[Tensor, " samples"]
    lengths: Int[Tensor, " samples"]
    layers: int

    @staticmethod
    def bytes_of(teacher: ElasticClassifier, samples: Samples, layers: Collection[int]) -> int:
        """Memory of the states, in float32; nothing is computed but the number of tokens."""
        mask = samples.inputs.get("attention_mask")
        if mask is not None:
            tokens = int((mask != 0).sum())
        else:
            with torch.no_grad():
                one = teacher.run(teacher.shape(teacher.whole), samples[:1].inputs)
            tokens = len(samples) * one.activations.embeddings.shape[1]
        return 4 * tokens * teacher.sizes.hidden * (len(layers) + 1)

    @staticmethod
    @torch.no_grad()
    def asked(
        teacher: ElasticClassifier,
        samples: Samples,
        layers: Collection[int],
        batch_size: int,
        numbers: Numbers | None = None,
    ) -> Answers:
        """Run the whole teacher on every sample, where its weights are.

        Args:
            teacher: of classes; a language model's logits would be too large to keep.
            samples: inputs of one size, or texts.
            layers: whose states are kept.
            batch_size: samples at once.
            numbers: of matrix products.
        """
        arch = teacher.shape(teacher.whole)
        kept: dict[int, list[Tensor]] = {layer: [] for layer in (-1, *sorted(layers))}
        pooled, logits, lengths = list[Tensor](), list[Tensor](), list[Tensor]()
        batches, back = by_length(samples, batch_size)
        for batch in batches:
            with mixed_precision(teacher.classifier.backbone.device, numbers):
                run = teacher.run(arch, batch.inputs)
            of = run.activations
            for layer, states in kept.items():
                state = of.embeddings if layer < 0 else of.hidden[layer]
                states.append(state.flatten(0, 1) if of.mask is None else state[of.mask])
            whole = torch.full((len(batch),), of.embeddings.shape[1], device=of.pooled.device)
            lengths.append(whole if of.mask is None else of.mask.sum(dim=1))
            pooled.append(of.pooled)
            logits.append(run.logits)
        length = torch.cat(lengths)
        starts = length.cumsum(0) - length
        order = slice(None) if back is None else back.to(length.device)
        return Answers(
            {layer: torch.cat(states) for layer, states in kept.items()},
            torch.cat(pooled)[order],
            torch.cat(logits)[order],
            starts[order],
            length[order],
            teacher.sizes.layers,
        )

    def to(self, rows: Int[Tensor, " batch"], tokens: int | None) -> Run:
        """The teacher's run on some samples, padded to so many ``tokens``.

        Padded positions hold another token's state, which no loss reads, and layers that were not
        kept are no numbers.
        """
        rows = rows.to(self.starts.device)
        length = self.lengths[rows]
        width = int(length.max()) if tokens is None else tokens
        columns = torch.arange(width, device=rows.device)
        mask = columns < length[:, None]
        places = torch.where(mask, self.starts[rows][:, None] + columns, 0)
        embeddings = self.states[-1][places]
        missing = embeddings.new_full((1,), torch.nan).expand_as(embeddings)
        hidden = tuple(
            self.states[layer][places] if layer in self.states else missing
            for layer in range(self.layers)
        )
        padding = None if tokens is None else mask
        pooled = self.pooled[rows]
        return Run(Activations(embeddings, hidden, missing, pooled, padding), self.logits[rows])
