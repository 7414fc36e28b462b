"""A checkpoint that answers here, token by token in PyTorch: its latency, and its server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.stratos.budget import Clock
from acme_fleet.stratos.teacher import Writer
from acme_fleet_runtime.chat import ChatTemplate
from acme_fleet_runtime.manifest import LanguagePreparation, Manifest
from acme_fleet_runtime.steps import Steps, most_probable
from acme_fleet_runtime.writer import Writer as ServedWriter

_WARM_UP = 2


class Generator(Protocol):
    """Goes on with a prompt, token by token; threads may share it."""

    def go_on(self, prompt: Sequence[int], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        """New tokens until nobody asks for more; ``choose`` takes one of the logits' places."""
        ...


class TorchGenerator:
    """A decoder of transformers with its keys and values; one step at a time is computed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model.eval()
        self._computing = threading.Lock()

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values for each token of a text."""
        config = self._model.config
        heads = config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * dim * self._model.dtype.itemsize

    def go_on(self, prompt: Sequence[int], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        """See :class:`Generator`."""
        new, past = [*prompt], None
        while True:
            tokens = torch.tensor([new], device=self._model.device)
            with self._computing, torch.no_grad():
                found = self._model(
                    input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1
                )
            past = found.past_key_values
            number = choose(found.logits[0, -1].float().cpu().numpy())
            yield number
            new = [number]


@dataclass(frozen=True)
class Latency:
    """Seconds of answers, one at a time: whole ones, and up to the first token.

    Attributes:
        answers, tokens: that were written.
        mean_s: of an answer. p50_s, p95_s, first_p50_s, first_p95_s: percentiles.
    """

    answers: int
    tokens: int
    mean_s: float
    p50_s: float
    p95_s: float
    first_p50_s: float
    first_p95_s: float


def measure_latency(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    end: int | None,
    most: int,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Answer prompts greedily, one after the other, and time each; the first ones once before.

    Args:
        generator: answers. prompts: tokens of questions, one at least.
        end: the token that ends an answer. most: tokens of an answer. clock: seconds.
    """

    def answer(prompt: Sequence[int]) -> tuple[float, float, int]:
        began, first = clock(), 0.0
        for count, number in enumerate(generator.go_on(prompt, most_probable), 1):
            first = first or clock() - began
            if number == end or count == most:
                return first, clock() - began, count
        raise RuntimeError("a generator ended by itself")

    for prompt in prompts[:_WARM_UP]:
        answer(prompt)
    first, whole, tokens = np.array([answer(prompt) for prompt in prompts]).T

    def percentile(values: np.ndarray, share: float) -> float:
        return float(np.percentile(values, share, method="inverted_cdf"))

    return Latency(
        answers=len(prompts),
        tokens=int(tokens.sum()),
        mean_s=float(whole.mean()),
        p50_s=percentile(whole, 50),
        p95_s=percentile(whole, 95),
        first_p50_s=percentile(first, 50),
        first_p95_s=percentile(first, 95),
    )


@dataclass(frozen=True)
class _About:
    """A model, as the server tells of it."""

    name: str
    precision: str
    task: str = "generation"


class StudentWriter(ServedWriter):
    """A student's folder behind the server of artifacts, which answers in OpenAI's form."""

    def __init__(self, folder: Path, name: str, precision: str, device: torch.device) -> None:
        """Load it.

        Args:
            folder: of Hugging Face's form. name, precision: that the server tells.
            device: runs on it.

        Raises:
            FleetError: if the checkpoint cannot be used.
        """
        writer = Writer(folder, "student", device)
        config = writer.model.config
        read = LanguagePreprocessing.of_checkpoint(str(folder), config.max_position_embeddings)
        assert isinstance(read, LanguagePreprocessing)
        if read.end is None:
            raise FleetError(f"{folder}: its tokenizer has no token that ends an answer")
        self.folder, self.manifest = folder, cast(Manifest, _About(name, precision))
        self.steps = cast(Steps, TorchGenerator(writer.model))
        self.rule = LanguagePreparation(
            context=config.max_position_embeddings,
            pad_id=read.pad_id,
            vocabulary=config.vocab_size,
            ends=(read.end,),
            special_tokens=read.special_tokens,
        )
        self._tokenizer = Tokenizer.from_str(read.document())
        self._template = None
        if read.chat_template is not None:
            self._template = ChatTemplate(read.chat_template, read.special_tokens)
