"""Answers of a language model, compared with those in the data, and its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.messages.results import LanguageResult
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.header.module import Header, LinearHeader
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import ABSENT, Evaluation, Task
from acme_fleet.training.memory import added_at_peak

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


@dataclass(frozen=True)
class Answered:
    """A module on texts: the loss per token, and prompts whose first answer is exactly right."""

    found: Evaluation
    prompts: int
    right: int

    @property
    def loss(self) -> float:
        """Per token; no more than a message carries."""
        return min(self.found.loss, _LARGEST)

    @property
    def exact(self) -> float | None:
        """Share of the prompts; none where there are none."""
        return self.right / self.prompts if self.prompts else None


@torch.no_grad()
def answered(task: Task, module: Callable[..., Tensor], samples: Samples) -> Answered:
    """Evaluate on every text once, whole answers included.

    The most probable continuation of a prompt is the answer just if each of the answer's tokens is
    the most probable one behind those before it: nothing need be generated to know.

    Args:
        task: of a model whose tokens have labels.
        module: takes the texts' inputs by name.
        samples: texts; those that are learned from their first token on have no prompt.
    """
    found, prompts, right = Evaluation(), 0, 0
    batches, _ = by_length(samples, task.at_once)
    for batch in batches:
        outputs = module(**batch.inputs)
        labels = batch.labels.to(outputs.device)
        found += task.evaluation(outputs, labels)
        known = labels != ABSENT
        begun = known.cumsum(dim=1) > 0
        first = known & ((begun & ~known).cumsum(dim=1) == 0)
        asks = ~known[:, 0] & known.any(dim=1)
        hit = (task.hits(outputs, labels) | ~first).all(dim=1)
        prompts, right = prompts + int(asks.sum()), right + int((hit & asks).sum())
    return Answered(found, prompts, right)


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


def writing_bytes(model: AcmeForCausalLM, prompt: Int[Tensor, " prompt"]) -> int | None:
    """Bytes that a model holds in PyTorch's memory, and a short answer adds at its peak.

    None where the system does not tell.
    """
    try:
        with added_at_peak(prompt.device) as added:
            model.most_probable([prompt], 1 + _TIMED)
    except FleetError:
        return None
    held = sum(each.nbytes for each in [*model.parameters(), *model.buffers()])
    return held + round(added())


def language_result(
    task: Task,
    model: AcmeForCausalLM,
    headers: Mapping[str, Header | LinearHeader],
    features: Samples,
    test: Samples,
) -> tuple[LanguageResult, dict[str, Evaluation]]:
    """Losses per token, answers that are exactly right where texts have prompts, and the speed.

    Args:
        task: as it judges what headers of the frozen backbone give.
        model: what ships.
        headers: ``coarse`` as received, ``best`` as shipped, and ``linear``.
        features, test: the test data as the headers take them, and as tokens.

    Returns:
        The result, and each header's evaluation.
    """
    of = {name: answered(task, header, features) for name, header in headers.items()}
    loss = {name: each.loss for name, each in of.items()}
    pairs, real = prompted(test[:1]), test.inputs["attention_mask"][0] != 0
    prompt = pairs[0][0] if pairs else test.inputs["input_ids"][0][real][:-1]
    first_token_s, tokens_per_s = writing_speed(model, prompt)
    result = LanguageResult(
        tokens=of["best"].found.count,
        loss_coarse=loss["coarse"],
        loss=loss["best"],
        loss_linear=loss["linear"],
        answers=of["best"].prompts,
        exact_coarse=of["coarse"].exact,
        exact=of["best"].exact,
        first_token_s=first_token_s,
        tokens_per_s=tokens_per_s,
        peak_bytes=writing_bytes(model, prompt),
    )
    return result, {name: each.found for name, each in of.items()}


def with_rival(result: LanguageResult, lora: Evaluation, params: int) -> LanguageResult:
    """The same with a LoRA of so many numbers beside it."""
    loss = min(lora.loss, _LARGEST)
    return result.model_copy(update={"loss_lora": loss, "lora_params": params})
