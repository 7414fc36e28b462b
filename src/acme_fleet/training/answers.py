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
_PADDING = 0  # masked: any token that exists will do

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


@torch.no_grad()
def exact_share(model: AcmeForCausalLM, pairs: Sequence[Prompted]) -> float | None:
    """Share of the prompts whose greedy continuation is the answer, token by token.

    None where there is no prompt.
    """
    right = 0
    for start in range(0, len(pairs), _TOGETHER):
        batch = pairs[start : start + _TOGETHER]
        longest = max(len(prompt) for prompt, _ in batch)
        ids = torch.full((len(batch), longest), _PADDING)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(batch):  # padding stands before: answers go on behind
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(len(answer) for _, answer in batch),
            do_sample=False,
            pad_token_id=_PADDING,
        )
        assert isinstance(written, Tensor)
        for row, (_, answer) in enumerate(batch):
            right += torch.equal(written[row, longest : longest + len(answer)].cpu(), answer)
    return right / len(pairs) if pairs else None
