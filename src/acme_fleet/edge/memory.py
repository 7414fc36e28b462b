"""Last uploads of devices: in a round that a device misses, its last set counts for its peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from acme_fleet.models.storage import read_tensors, with_prefix, without_prefix, write_tensors
from acme_fleet.personalization.base import Upload
from acme_fleet.runs.sealed import STRICT, read_sealed_json, typed, write_sealed_json

_ROUNDS = "rounds.json"


@dataclass(frozen=True)
class _Told:
    """An upload's fields beside its tensors."""

    __pydantic_config__ = STRICT

    round: int
    kept: dict[str, list[int]]
    held: list[int]


@dataclass(frozen=True)
class Remembered:
    """A device's last valid upload."""

    importance: dict[str, Tensor]
    header: dict[str, Tensor]
    kept: dict[str, list[int]]
    held: list[int]
    masked: dict[str, Tensor] = field(default_factory=dict)


def remember(folder: Path, number: int, uploads: Mapping[str, Upload]) -> None:
    """Keep the uploads of a round on disk, each in place of the device's earlier one."""
    for name, upload in uploads.items():
        tensors = with_prefix("importance", upload.importance)
        tensors |= with_prefix("header", upload.header)
        kept = {layer: list(channels) for layer, channels in upload.kept.items()}
        about = {"round": number, "kept": kept, "held": list(upload.held)}
        write_tensors(folder / f"{name}.safetensors", tensors, about, private=True)


def recall(
    folder: Path, number: int, uploads: Mapping[str, Upload], names: Iterable[str], decay: float
) -> dict[str, tuple[Upload, float]]:
    """Last uploads of the devices that count in a round, and the freshness of each.

    Freshness is 1 for the ``uploads`` of the round, and for the others of ``names`` ``decay`` to
    the power of the rounds missed since. A device that has never sent anything, or whose freshness
    is zero, is left out.
    """
    found: dict[str, tuple[Upload, float]] = {}
    for name in names:
        path = folder / f"{name}.safetensors"
        if name in uploads:
            found[name] = uploads[name], 1.0
        elif decay > 0 and path.exists():
            tensors, about = read_tensors(path)
            importance = without_prefix("importance", tensors)
            header = without_prefix("header", tensors)
            told = typed(path, _Told, about)
            old = Remembered(importance, header, told.kept, told.held)
            found[name] = old, decay ** (number - told.round)
    return found


@dataclass(frozen=True)
class Rounds:
    """Progress of the rounds of Algorithm 2, with the faults of devices.

    Attributes:
        done: rounds that need not be done any more.
        missed: how many each device missed, or in which what it sent was refused.
        shortened: devices whose update was scaled down, and the least scale.
    """

    __pydantic_config__ = STRICT

    done: int = 0
    missed: dict[str, int] = field(default_factory=dict)
    shortened: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Rounds:
        """Read the last state, or the beginning.

        Raises:
            DamagedError: if it is damaged: who missed which round is written nowhere else.
        """
        path = folder / _ROUNDS
        return read_sealed_json(path, Rounds) if path.exists() else Rounds()

    def write(self, folder: Path) -> None:
        """Keep it on disk."""
        write_sealed_json(folder / _ROUNDS, asdict(self))

    def after(
        self, absent: Iterable[str], shortened: Mapping[str, float], last: bool, rounds: int
    ) -> Rounds:
        """One round later; all ``rounds`` are done after the last one."""
        missed = self.missed | {name: self.missed.get(name, 0) + 1 for name in absent}
        least = {n: min(scale, self.shortened.get(n, 1.0)) for n, scale in shortened.items()}
        return Rounds(rounds if last else self.done + 1, missed, self.shortened | least)
