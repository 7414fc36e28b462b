"""A language model's graph in ONNX Runtime: new tokens in, logits out, the rest is remembered."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from acme_fleet_runtime.errors import ArtifactError
from acme_fleet_runtime.outside import reading

_CHUNK = 64  # tokens of a prompt at once: each has a logit for each word


class Memory:
    """Keys, values and more that a model remembers of a batch of texts."""

    def __init__(self, state: dict[str, np.ndarray], mask: np.ndarray) -> None:
        self.state, self.mask = state, mask


class Steps:
    """A graph with inputs for new tokens, their mask, and what it remembers. Threads may share it.

    One step at a time is computed, so that texts of several threads grow side by side.
    """

    def __init__(self, session: Any, place: str) -> None:
        """Of a session of ONNX Runtime; ``place`` begins messages."""
        self._session, self._place = session, place
        self._past = [(one.name, one.shape) for one in session.get_inputs()[2:]]
        self._computing = threading.Lock()

    @property
    def token_bytes(self) -> int:
        """Bytes that are remembered for each token of a text."""
        growing = [
            shape for _, shape in self._past if not all(isinstance(s, int) for s in shape[1:])
        ]
        return sum(4 * math.prod(s for s in shape[1:] if isinstance(s, int)) for shape in growing)

    def empty(self, texts: int) -> Memory:
        """The memory before the first token."""
        state = {
            name: np.zeros(
                [texts, *(s if isinstance(s, int) else 0 for s in shape[1:])], np.float32
            )
            for name, shape in self._past
        }
        return Memory(state, np.zeros((texts, 0), np.int64))

    def step(
        self, tokens: np.ndarray, memory: Memory, real: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits of new tokens, ``(texts, tokens, words)``, which go into the memory.

        Args:
            tokens: int64 of shape ``(texts, tokens)``.
            memory: of what stands before them; it is changed.
            real: 1 for tokens, 0 for padding; all are real without it.

        Raises:
            ArtifactError: if the model fails, or gives what is no number.
        """
        real = np.ones_like(tokens) if real is None else real
        mask = np.concatenate([memory.mask, real], axis=1)
        inputs = {"input_ids": tokens, "attention_mask": mask, **memory.state}
        with self._computing, reading(f"{self._place}: the model cannot be used", ArtifactError):
            logits, *state = self._session.run(None, inputs)
        if not np.isfinite(logits[real != 0]).all():
            raise ArtifactError(f"{self._place}: the model's answers are no finite numbers")
        memory.mask = mask
        memory.state = dict(zip(memory.state, state, strict=True))
        return logits

    def go_on(self, prompt: Sequence[int], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        """New tokens behind a prompt, one by one, until nobody asks for more.

        Args:
            prompt: tokens, one at least.
            choose: takes one of the logits' places.

        Raises:
            ArtifactError: if the model fails.
        """
        memory, new = self.empty(1), np.array([list(prompt)], np.int64)
        while True:
            logits = np.zeros((1, 1, 1), np.float32)
            for start in range(0, new.shape[1], _CHUNK):
                logits = self.step(new[:, start : start + _CHUNK], memory)
            number = choose(logits[0, -1])
            yield number
            new = np.array([[number]], np.int64)


def most_probable(logits: np.ndarray) -> int:
    """The place of the largest logit."""
    return int(logits.argmax())
