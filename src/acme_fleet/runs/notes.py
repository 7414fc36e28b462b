"""Progress of a stage: its callback, the words on how training stands, the numbers in them."""

from __future__ import annotations

import re
from typing import Protocol, runtime_checkable

_NUMBER = r"(-?\d[\d.]*(?:e[+-]?\d+)?)"
_KNOWN = {
    "train_loss": re.compile(rf"(?:^|last epoch: )loss {_NUMBER}"),
    "eval_accuracy": re.compile(rf"validation (?:.* )?accuracy {_NUMBER}"),
    "eval_perplexity": re.compile(rf"perplexity {_NUMBER}"),
    "reward": re.compile(rf"reward {_NUMBER}"),
}


@runtime_checkable
class Progress(Protocol):
    """A stage's callback: it has finished ``done`` of ``total`` parts."""

    def __call__(
        self, done: int, total: int, note: str = "", value: float | None = None, /
    ) -> None:
        """``note`` says in words how it stands; ``value`` is a figure of the part just finished."""
        ...


def training_note(loss: float, judged: str | None = None) -> str:
    """An epoch's mean loss and, where validation data judged it, their verdict."""
    return f"loss {loss:.4g}" + (f", validation {judged}" if judged else "")


def numbers_in(note: str) -> dict[str, float]:
    """The numbers of a note, by the names that Hugging Face's users expect; text may be anything.

    A note crosses hosts as text: numbers are found in it, not sent beside it.
    """
    found = {name: pattern.search(note) for name, pattern in _KNOWN.items()}
    return {name: float(match[1]) for name, match in found.items() if match}
