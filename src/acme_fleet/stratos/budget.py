"""Hours and money of a run, kept over interruptions, and the limit that training must not pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from acme_fleet.runs.sealed import STRICT, if_sound, read_sealed_json, write_sealed_json
from acme_fleet.stratos.request import Limits

Clock = Callable[[], float]
Work = Literal["training", "evaluation"]
_KEPT_EVERY_S = 5.0


class BudgetSpentError(Exception):
    """Another step might overdraw the budget."""


@dataclass(frozen=True)
class Budget:
    """Limits of time and money of a training, its labels made before it not counted (ours).

    Attributes:
        usd_per_hour: price of the server. max_usd, max_hours: limits; none does not bind.
    """

    usd_per_hour: float
    max_usd: float | None = None
    max_hours: float | None = None

    @staticmethod
    def of(limits: Limits, usd_per_hour: float) -> Budget:
        """The limits of a task that bind a training."""
        return Budget(usd_per_hour, limits.max_training_usd, limits.max_training_hours)

    @property
    def seconds(self) -> float:
        """Time that it pays for; infinite where nothing binds, or the server is free."""
        hours = math.inf if self.max_hours is None else self.max_hours
        if self.max_usd is not None and self.usd_per_hour > 0:
            hours = min(hours, self.max_usd / self.usd_per_hour)
        return 3600 * hours

    def usd(self, seconds: float) -> float:
        """Price of some seconds."""
        return seconds / 3600 * self.usd_per_hour

    def __str__(self) -> str:
        """For errors."""
        limits = {"max_training_usd": self.max_usd, "max_training_hours": self.max_hours}
        told = [f"limits.{name} {bound:g}" for name, bound in limits.items() if bound is not None]
        return f"{' and '.join(told)} at {self.usd_per_hour:.4g} USD/h"


@dataclass(frozen=True)
class Spent:
    """Seconds of a run until now, all its starts together."""

    __pydantic_config__ = STRICT

    training: float = 0.0
    evaluation: float = 0.0


class Meter:
    """Counts the seconds of a run, in a file of its own; at most the last ones are lost."""

    def __init__(
        self, path: Path, budget: Budget, clock: Clock = time.monotonic, began: float | None = None
    ) -> None:
        """Go on with what the file says; this start ``began`` when the clock told so."""
        self.budget = budget
        self.work: Work = "training"
        self._path, self._clock = path, clock
        known = if_sound(path, lambda each: read_sealed_json(each, Spent))
        self._spent = known or Spent()
        self._last = self._kept = clock() if began is None else began

    def spent(self) -> Spent:
        """Seconds until now."""
        now = self._clock()
        before = self._spent.training if self.work == "training" else self._spent.evaluation
        self._spent = replace(self._spent, **{self.work: before + now - self._last})
        self._last = now
        if now - self._kept >= _KEPT_EVERY_S:
            self.keep()
        return self._spent

    @property
    def left(self) -> float:
        """Seconds that the budget still pays for."""
        return self.budget.seconds - self.spent().training

    def keep(self) -> None:
        """Write the seconds.

        Raises:
            WriteError: if it cannot be written.
        """
        self._kept = self._last
        write_sealed_json(self._path, asdict(self._spent))
