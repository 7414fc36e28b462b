"""Texts that a language model generates: compared with answers in the data, and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.data.samples import Samples
from acme_fleet.messages.results import LanguageResult
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.header.module import Header
from acme_fleet.tasks.base import ABSENT, Evaluation

_TOGETHER = 32
_TIMED, _TRIES = 16, 3  # tokens behind the first, and the best of so many
_LARGEST = 1e30  # that a message carries

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


def writing_speed(model: AcmeForCausalLM, prompt: Int[Tensor, " prompt"]) -> tuple[float, float]:
    """Seconds to the first token behind a prompt, and tokens a second after it, on this machine."""
    seconds = {}
    for most in (1, 1 + _TIMED):
        tries = []
        for _ in range(_TRIES):
            started = time.perf_counter()
            model.most_probable([prompt], most)
            tries.append(time.perf_counter() - started)
        seconds[most] = min(tries)
    first, all_of_them = seconds.values()
    return first, _TIMED / max(all_of_them - first, 1e-6)


def language_result(
    backbone: PreTrainedModel,
    coarse: Header,
    best: Header,
    found: Mapping[str, Evaluation],
    test: Samples,
) -> LanguageResult:
    """Losses per token, answers that are exactly right where texts have prompts, and the speed.

    Args:
        backbone: frozen.
        coarse, best: the header as received, and as shipped.
        found: evaluations of ``coarse``, ``best`` and ``linear`` on the test data.
        test: the same data as tokens.
    """
    pairs, shipped = prompted(test), AcmeForCausalLM.of(backbone, best)
    loss = {name: min(each.loss, _LARGEST) for name, each in found.items()}
    real = test.inputs["attention_mask"][0] != 0
    prompt = pairs[0][0] if pairs else test.inputs["input_ids"][0][real][:-1]
    first_token_s, tokens_per_s = writing_speed(shipped, prompt)
    return LanguageResult(
        tokens=found["best"].count,
        loss_coarse=loss["coarse"],
        loss=loss["best"],
        loss_linear=loss["linear"],
        answers=len(pairs),
        exact_coarse=exact_share(AcmeForCausalLM.of(backbone, coarse), pairs),
        exact=exact_share(shipped, pairs),
        first_token_s=first_token_s,
        tokens_per_s=tokens_per_s,
    )


def with_rival(result: LanguageResult, lora: Evaluation, params: int) -> LanguageResult:
    """The same with a LoRA of so many numbers beside it."""
    loss = min(lora.loss, _LARGEST)
    return result.model_copy(update={"loss_lora": loss, "lora_params": params})
