"""Last uploads of devices: in a round that a device misses, its last set counts for its peers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from acme_fleet.links.wire import encode, read_message
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import FeatureSample, Upload
from acme_fleet.runs.ledger import note, require
from acme_fleet.runs.sealed import STRICT, read_sealed_json, write_sealed, write_sealed_json

SAMPLES, UPLOADS = "samples", "uploads"
"""Folders of a group: feature samples, and last uploads, by device."""
_ROUNDS = "rounds.json"

UploadT = TypeVar("UploadT", bound=Upload)


def remember(folder: Path, uploads: Mapping[str, Message]) -> None:
    """Keep what devices sent on disk, each in place of the device's earlier message."""
    for name, upload in uploads.items():
        write_sealed(_path(folder, name), encode(upload))
    note(folder, (_path(folder, name).name for name in uploads))


def recall(
    folder: Path,
    number: int,
    uploads: Mapping[str, UploadT],
    names: Iterable[str],
    decay: float,
    kind: type[UploadT],
    settled: Collection[str] = (),
) -> dict[str, tuple[UploadT, float]]:
    """Last uploads of the devices that count in a round, and the freshness of each.

    Freshness is 1 for the ``uploads`` of the round, and for the others of ``names`` ``decay`` to
    the power of the rounds missed since. A device that has never sent anything, or whose freshness
    is zero, is left out. What the ``settled`` sent is as fresh as ever: they have finished.

    Raises:
        DamagedError: if a file is damaged or missing, or holds no upload of this ``kind``.
    """
    found: dict[str, tuple[UploadT, float]] = {}
    for name in names:
        path = _path(folder, name)
        if name in uploads:
            found[name] = uploads[name], 1.0
        elif name in settled and require(path):
            found[name] = read_message(path, kind), 1.0
        elif decay > 0 and require(path):
            old = read_message(path, kind)
            found[name] = old, decay ** (number - old.round)
    return found


def recall_samples(folder: Path, names: Iterable[str]) -> dict[str, FeatureSample]:
    """The feature samples that devices once sent.

    Raises:
        DamagedError: if one is missing or damaged.
    """
    return {name: read_message(_path(folder, name), FeatureSample) for name in names}


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


@dataclass(frozen=True)
class Rounds:
    """Progress of the rounds of Algorithm 2, with the faults of devices.

    Attributes:
        done: rounds that need not be done any more.
        missed: how many each device missed, or in which what it sent was refused.
        shortened: devices whose update was scaled down, and the least scale.
        settled: devices that finished in the run that this one took them over from. They take no
            part in the rounds; the last that they sent counts for their peers.
    """

    __pydantic_config__ = STRICT

    done: int = 0
    missed: dict[str, int] = field(default_factory=dict)
    shortened: dict[str, float] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> Rounds:
        """Read the last state, or the beginning.

        Raises:
            DamagedError: if it is damaged or missing: who missed which round is written nowhere
                else.
        """
        path = folder / _ROUNDS
        return read_sealed_json(path, Rounds) if require(path) else Rounds()

    @staticmethod
    def begun(folder: Path) -> bool:
        """True if there is progress on disk."""
        return require(folder / _ROUNDS)

    def write(self, folder: Path) -> None:
        """Keep it on disk."""
        write_sealed_json(folder / _ROUNDS, asdict(self))
        note(folder, [_ROUNDS])

    def after(
        self, absent: Iterable[str], shortened: Mapping[str, float], last: bool, rounds: int
    ) -> Rounds:
        """One round later; all ``rounds`` are done after the last one."""
        missed = self.missed | {name: self.missed.get(name, 0) + 1 for name in absent}
        least = {n: min(scale, self.shortened.get(n, 1.0)) for n, scale in shortened.items()}
        done = rounds if last else self.done + 1
        return Rounds(done, missed, self.shortened | least, self.settled)
