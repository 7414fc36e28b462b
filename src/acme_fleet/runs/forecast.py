"""The time that a run has left, from what it has to do and the speed measured so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_ENOUGH = 0.02  # of a kind of work, before its own speed counts


@dataclass(frozen=True)
class Expected:
    """All stages of one name that a run will have.

    Attributes:
        count: of such stages.
        work: of all of them together, in operations; only shares matter.
    """

    count: int
    work: float


@dataclass(frozen=True)
class Earlier:
    """Seconds that processes before this one spent on a run's stages, by actor and name.

    Attributes:
        finished: on stages that are over. begun: on others, which go on.
    """

    finished: Mapping[tuple[str, str], float]
    begun: Mapping[tuple[str, str], float]


class Forecast:
    """Follows the stages of a run, whose names begin as ``expected`` says.

    What is left of a kind of stage takes as long as its own measured speed says; where there is
    none yet, the speed of all work so far counts.
    """

    def __init__(self, expected: Mapping[str, Expected], earlier: Earlier | None = None) -> None:
        self._expected = dict(expected)
        self._stages: dict[tuple[str, str], tuple[float, float, float]] = {}
        """Start, latest time and share done of each stage, by actor and name."""
        if earlier:
            self._stages = {key: (0.0, taken, 1.0) for key, taken in earlier.finished.items()}
            self._begun = dict(earlier.begun)

    _begun: Mapping[tuple[str, str], float] = MappingProxyType({})

    def stage(self, actor: str, name: str, share: float, now: float) -> None:
        """A stage has done this share of its work, from 0 to 1; ``now`` in seconds."""
        key = actor, name
        if key not in self._stages or share < self._stages[key][2]:  # perhaps done once more
            self._stages[key] = now - self._begun.get(key, 0.0), now, share
        self._stages[key] = self._stages[key][0], now, share

    @property
    def done(self) -> float:
        """The share of all work that is done, from 0 to 1."""
        total = sum(each.work for each in self._expected.values())
        did = sum(self._share(kind) * each.work for kind, each in self._expected.items())
        return did / total if total else 0.0

    def left_s(self) -> float | None:
        """Seconds that are left, about; none while too little was measured."""
        spent = {kind: self._seconds(kind) for kind in self._expected}
        did = {kind: self._share(kind) * each.work for kind, each in self._expected.items()}
        if not sum(spent.values()) or self.done < _ENOUGH:
            return None
        overall = sum(did.values()) / sum(spent.values())
        left = 0.0
        for kind, each in self._expected.items():
            own = did[kind] / spent[kind] if spent[kind] and did[kind] else 0.0
            speed = own if self._share(kind) >= _ENOUGH and own else overall
            left += (each.work - did[kind]) / speed
        return left

    def _of(self, kind: str) -> list[tuple[float, float, float]]:
        """Its stages, by the longest kind that their name begins with."""
        return [
            value
            for (_, name), value in self._stages.items()
            if max((k for k in self._expected if name.startswith(k)), key=len, default="") == kind
        ]

    def _share(self, kind: str) -> float:
        return min(1.0, sum(share for *_, share in self._of(kind)) / self._expected[kind].count)

    def _seconds(self, kind: str) -> float:
        return sum(latest - started for started, latest, _ in self._of(kind))
