"""Answers that a language model generates, compared with those in the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.tasks.base import ABSENT

_TOGETHER = 32

Prompted = tuple[Int[Tensor, " prompt"], Int[Tensor, " answer"]]
"""Tokens of a prompt, and of the answer to it; what ends the answer is its last token."""


def prompted(samples: Samples) -> list[Prompted]:
    """The prompts of samples with their first answers; plain texts have none."""
    pairs = []
    for tokens, labels in zip(samples.inputs["input_ids"], samples.labels, strict=True):
        known = labels != ABSENT
        first = int(known.int().argmax())
        if first == 0:  # learned from its beginning
            continue
        answer = labels[first:]
        length = int((answer != ABSENT).int().cumprod(dim=0).sum())
        pairs.append((tokens[: first + 1], answer[:length]))
    return pairs


def exact_share(model: AcmeForCausalLM, pairs: Sequence[Prompted]) -> float | None:
    """Share of the prompts whose greedy continuation is the answer, token by token.

    None where there is no prompt.
    """
    right = 0
    for start in range(0, len(pairs), _TOGETHER):
        batch = pairs[start : start + _TOGETHER]
        most = max(len(answer) for _, answer in batch)
        written = model.most_probable([prompt for prompt, _ in batch], most).cpu()
        for row, (_, answer) in zip(written, batch, strict=True):
            right += torch.equal(row[: len(answer)], answer)
    return right / len(pairs) if pairs else None
