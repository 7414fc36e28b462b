"""Answers to inputs, in order and in batches, whatever runs the model; and as lines of JSON."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.inputs import Input
from acme_fleet_runtime.outside import one_line

_BATCH = 32
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Classified:
    """The probability of every class for one input, the most probable class first."""

    input: Input
    probabilities: dict[str, float]

    def best(self, top: int | None) -> list[tuple[str, float]]:
        """The most probable classes; without a number, all of them."""
        return list(islice(self.probabilities.items(), top))


@dataclass(frozen=True)
class Refused:
    """An input that cannot be read, and the reason."""

    input: Input
    reason: str


class Classifier(ABC, Generic[Prepared]):
    """A model that gives a probability to each of its classes."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """Class names in the order of the model's outputs."""

    @property
    @abstractmethod
    def takes_images(self) -> bool:
        """True for images, False for texts."""

    @abstractmethod
    def prepared(self, one: Input) -> Prepared:
        """One sample as the model takes it.

        Raises:
            FleetError: if it cannot be read as that.
        """

    @abstractmethod
    def probabilities(self, samples: Sequence[Prepared]) -> list[list[float]]:
        """For each sample the probabilities of the classes.

        Raises:
            AcmeError: if the model cannot be used.
        """

    def classify(self, inputs: Iterable[Input]) -> Iterator[Classified | Refused]:
        """An answer for each input, in order; only one batch of inputs is in memory at a time.

        Raises:
            AcmeError: if the model cannot be used.
        """
        waiting: list[tuple[Input, Prepared | Refused]] = []
        for one in inputs:
            try:
                if one.error:
                    raise FleetError(one.error)
                waiting.append((one, self.prepared(one)))
            except FleetError as error:
                waiting.append((one, Refused(one, one_line(str(error), 500))))
            if len(waiting) == _BATCH:
                yield from self._answers(waiting)
                waiting = []
        yield from self._answers(waiting)

    def _answers(
        self, batch: Sequence[tuple[Input, Prepared | Refused]]
    ) -> Iterator[Classified | Refused]:
        ready = [sample for _, sample in batch if not isinstance(sample, Refused)]
        rows = iter(self.probabilities(ready) if ready else [])
        for one, sample in batch:
            if isinstance(sample, Refused):
                yield sample
            else:
                yield Classified(one, ordered(self.labels, next(rows)))


def ordered(labels: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    """Probabilities by class name, the largest first."""
    named = dict(zip(labels, row, strict=True))
    return {name: named[name] for name in sorted(named, key=lambda name: -named[name])}


def write_answers(answers: Iterable[Classified | Refused], top: int | None) -> tuple[int, int]:
    """A JSON object a line (ASCII); returns the numbers of answers and errors.

    ``file``, ``line`` and ``text`` say which input it is. ``class``, ``probability`` and
    ``probabilities`` (of all classes, or of the ``top``, largest first) follow, or ``error``.
    """
    total, refused = 0, 0
    for answer in answers:
        total += 1
        one = answer.input
        record: dict[str, object] = {"file": one.file} if one.file else {}
        if one.line:
            record["line"] = one.line
        if one.text is not None:
            record["text"] = one.text
        if isinstance(answer, Refused):
            refused += 1
            record["error"] = answer.reason
        else:
            best = dict(answer.best(top))
            name, probability = next(iter(best.items()))
            record |= {"class": name, "probability": probability, "probabilities": best}
        sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
        sys.stdout.flush()
    return total, refused


def write_lines(answers: Iterable[Classified | Refused], top: int | None) -> tuple[int, int]:
    """For people: a line for each input and each of its ``top`` classes (1 unless given)."""
    total, refused = 0, 0
    for answer in answers:
        total += 1
        label = answer.input.label
        if isinstance(answer, Refused):
            refused += 1
            told = [f"error: {answer.reason}"]
        else:
            told = [f"{one_line(name)}  {p:.3f}" for name, p in answer.best(top or 1)]
        sys.stdout.writelines(f"{label}  {line}\n" for line in told)
        sys.stdout.flush()
    return total, refused
