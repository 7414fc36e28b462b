"""The time that a run has left, from what it has to do and the speed measured so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_ENOUGH = 0.02  # of a kind of work, before its own speed counts


@dataclass(frozen=True)
class Expected:
    """All stages of one name that a run will have.

    Attributes:
        count: of such stages.
        work: of all of them together, in operations; only shares matter.
        perhaps: the part of it that a stage may turn out not to need: it ends then without a word
            on its progress.
        until: the name of another kind; when that begins, no more stages of this one come.
    """

    count: int
    work: float
    perhaps: float = 0.0
    until: str = ""


@dataclass(frozen=True)
class Earlier:
    """Seconds that processes before this one spent on a run's stages, by actor and name.

    Attributes:
        finished: on stages that are over. begun: on others, which go on.
    """

    finished: Mapping[tuple[str, str], float]
    begun: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Left:
    """The time that a run had left when a stage last told of itself.

    Attributes:
        seconds: in all. later_s: of them, those behind the stage that told.
    """

    seconds: float
    later_s: float

    def after(self, silence_s: float) -> float:
        """Seconds that are left when nothing was told for so long: the stage goes on meanwhile."""
        return max(self.later_s, self.seconds - silence_s)


class Forecast:
    """Follows the stages of a run, whose names begin as ``expected`` says.

    What is left of a kind of stage takes as long as its own measured speed says; where there is
    none yet, the speed of all work so far counts.
    """

    def __init__(self, expected: Mapping[str, Expected], earlier: Earlier | None = None) -> None:
        self._expected = dict(expected)
        self._begun = dict(earlier.begun) if earlier else {}
        self._stages: dict[tuple[str, str], tuple[float, float, float]] = {}
        """Start, latest time and share done of each stage, by actor and name."""
        self._did = dict.fromkeys(expected, 0.0)
        """Sums of the shares, by kind."""
        self._spent = dict.fromkeys(expected, 0.0)
        """Seconds, by kind."""
        self._decided = dict.fromkeys(expected, 0)
        self._needless = dict.fromkeys(expected, 0)
        """Stages that are under way or over, and those without the part that may be needless."""
        self._kinds_begun = set[str]()
        self._latest = "", 0.0
        """The kind of the stage that told last, and the share that it has to do."""
        for key, taken in (earlier.finished if earlier else {}).items():
            self._note(key, (0.0, taken, 1.0))

    def stage(self, actor: str, name: str, share: float, now: float) -> None:
        """A stage has done this share of its work, from 0 to 1; ``now`` in seconds."""
        key = actor, name
        started, _, before = self._stages.get(key, (0.0, 0.0, math.inf))
        if share < before:  # it begins; perhaps once more
            started = now - self._begun.get(key, 0.0)
        self._note(key, (started, now, share))

    def _note(self, key: tuple[str, str], to: tuple[float, float, float]) -> None:
        fits = [kind for kind in self._expected if key[1].startswith(kind)]
        if not fits:
            return
        kind = max(fits, key=len)
        old = self._stages.get(key, (0.0, 0.0, 0.0))
        self._did[kind] += to[2] - old[2]
        self._spent[kind] += (to[1] - to[0]) - (old[1] - old[0])
        self._decided[kind] += (to[2] > 0) - (old[2] > 0)
        if key in self._stages and old[2] == 0 and to[2] == 1:
            self._needless[kind] += 1
        self._stages[key] = to
        self._kinds_begun.add(kind)
        self._latest = kind, 1 - to[2]

    @property
    def done(self) -> float:
        """The share of all work that is done, from 0 to 1."""
        did, total = (sum(each.values()) for each in self._work())
        return did / total if total else 0.0

    @property
    def at_most(self) -> bool:
        """True while less work than expected may be left."""
        return any(e.perhaps and self._decided[k] < e.count for k, e in self._expected.items())

    def left(self) -> Left | None:
        """The time that is left, about; none while too little was measured."""
        spent = self._spent
        did, work = self._work()
        if not sum(spent.values()) or self.done < _ENOUGH:
            return None
        overall = sum(did.values()) / sum(spent.values())
        seconds = under_way = 0.0
        for kind, of_kind in work.items():
            own = did[kind] / spent[kind] if spent[kind] else 0.0
            speed = own if did[kind] >= _ENOUGH * of_kind and own else overall
            seconds += (of_kind - did[kind]) / speed
            if kind == self._latest[0]:
                under_way = self._latest[1] * of_kind / self._expected[kind].count / speed
        return Left(seconds, max(0.0, seconds - under_way))

    def _work(self) -> tuple[dict[str, float], dict[str, float]]:
        """The work that is done, and all of it, by kind."""
        did, work = {}, {}
        for kind, each in self._expected.items():
            spared = each.perhaps * min(1.0, self._needless[kind] / each.count)
            did[kind] = each.work * min(1.0, self._did[kind] / each.count) - spared
            over = each.until in self._kinds_begun
            work[kind] = did[kind] if over else each.work - spared
        return did, work
