"""Linear maps from what a student of a smaller hidden size computes to its teacher's; they help to
learn and to compare, and are no part of a model. Beyond the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.padding import by_length

_RIDGE = 0.01
_ROWS = 4096
"""Tokens of each state that a map is fitted to at first."""


def least_squares(
    mine: Float[Tensor, "rows mine"], theirs: Float[Tensor, "rows theirs"], states: int = 1
) -> nn.Linear:
    """The affine map of least squared error, drawn towards one that leaves channels as they are.

    min_W ‖(X − x̄)·Wᵀ − (Y − ȳ)‖² + λ·‖W − W₀‖²; W₀ takes each of my channels for the first of
    theirs, as in a model in order of importance. λ is a hundredth of my channels' mean sum of
    squares: what the rows do not tell stays as it is.

    Args:
        mine, theirs: X and Y.
        states: how many hidden states stand in a row, in both.
    """
    x, y = mine.detach().cpu().double(), theirs.detach().cpu().double()
    start = torch.eye(y.shape[1] // states, x.shape[1] // states, dtype=torch.float64)
    start = torch.kron(torch.eye(states, dtype=torch.float64), start)
    centred, rest = x - x.mean(dim=0), y - y.mean(dim=0)
    rest = rest - centred @ start.T
    gram = centred.T @ centred
    ridge = (_RIDGE * gram.diagonal().mean()).clamp_min(1e-12)
    gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    weight = start + torch.linalg.solve(gram, centred.T @ rest).T
    fitted = nn.Linear(x.shape[1], y.shape[1], device=mine.device)
    fitted.weight.data = weight.float().to(mine.device)
    fitted.bias.data = (y.mean(dim=0) - weight @ x.mean(dim=0)).float().to(mine.device)
    return fitted


class StateMaps(nn.Module):
    """For each hidden size one map of all hidden states, and one of pooled vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.pooled = nn.ModuleDict(), nn.ModuleDict()

    @staticmethod
    @torch.no_grad()
    def fitted(
        teacher: ElasticClassifier,
        student: ElasticClassifier,
        variants: Iterable[Variant],
        samples: Samples,
    ) -> StateMaps:
        """Maps for the hidden sizes of these students that are not the whole teacher's.

        Args:
            teacher, student: elastic models of one reference.
            variants: one for each hidden size.
            samples: what the maps are fitted to at first.
        """
        maps = StateMaps()
        for variant in variants:
            arch = student.shape(variant)
            if arch.hidden is None:
                continue
            mine = student.run(arch, samples.inputs)
            theirs = teacher.run(teacher.shape(teacher.whole), samples.inputs)
            pairs = [(mine.activations.embeddings, theirs.activations.embeddings)]
            for state, layer in zip(mine.activations.hidden, arch.layers, strict=True):
                pairs.append((state, theirs.activations.hidden[layer]))
            mask = mine.activations.mask
            sides = zip(*pairs, strict=True)
            both = [torch.cat([_some(state, mask) for state in side]) for side in sides]
            key, vectors = str(arch.hidden), [run.activations.pooled for run in (mine, theirs)]
            maps.states[key] = least_squares(both[0], both[1])
            maps.pooled[key] = least_squares(*vectors, states=vectors[0].shape[1] // arch.hidden)
        return maps

    def lifted(self, run: Run) -> Run:
        """A student's run with its states in the teacher's channels."""
        mine = run.activations
        key = str(mine.embeddings.shape[-1])
        states = self.states[key]
        hidden = tuple(states(state) for state in mine.hidden)
        observed = replace(
            mine,
            embeddings=states(mine.embeddings),
            hidden=hidden,
            final=hidden[-1],  # before the final normalisation: no loss reads it
            pooled=self.pooled[key](mine.pooled),
        )
        return Run(observed, run.logits)


def _some(state: Tensor, mask: Tensor | None) -> Tensor:
    """Some real tokens of a state, the same in each."""
    tokens = state.flatten(0, 1) if mask is None else state[mask]
    return tokens[:: max(1, len(tokens) // _ROWS)]


@torch.no_grad()
def pooled_vectors(
    model: ElasticClassifier,
    variant: Variant,
    samples: Samples,
    batch_size: int = 256,
    on_batch: Callable[[], None] = lambda: None,
) -> Float[Tensor, "samples pooled"]:
    """Pooled vectors of a sub-network."""
    arch, rows = model.shape(variant), []
    tensors = model.tensors(arch)
    batches, back = by_length(samples, batch_size)
    for batch in batches:
        rows.append(model.run(arch, batch.inputs, tensors).activations.pooled)
        on_batch()
    together = torch.cat(rows)
    return together if back is None else together[back]


def pooled_map(
    student: ElasticClassifier,
    variant: Variant,
    mine: Float[Tensor, "samples pooled"],
    theirs: Float[Tensor, "samples whole"],
) -> nn.Linear:
    """The map from a student's pooled vectors to the teacher's of the same samples."""
    hidden = student.shape(variant).hidden or student.sizes.hidden
    states = mine.shape[1] // hidden
    return least_squares(mine, theirs, states).requires_grad_(False)
