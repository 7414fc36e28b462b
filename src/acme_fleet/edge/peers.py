"""Devices that personalise together: who listens to whom, and whose masks have whose in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from acme_fleet.messages.peer_weights import PeerWeights, among, from_lists
from acme_fleet.runs.sealed import STRICT, read_sealed_json, write_sealed_json

_FILE = "similarity.json"


@dataclass(frozen=True)
class Peers:
    """Those whose feature samples arrived.

    Attributes:
        devices: their names.
        weights, columns: Ŵ of Eq. 20, see :func:`~acme_fleet.messages.peer_weights.to_lists`.
        keys: public keys by name; empty without masking.
    """

    __pydantic_config__ = STRICT

    devices: list[str]
    weights: list[list[float]]
    keys: dict[str, str] = field(default_factory=dict)
    columns: list[list[int]] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> Peers | None:
        """Read the peers that were written there, or none.

        Raises:
            DamagedError: if it is damaged: the devices may not be there again.
        """
        path = folder / _FILE
        return read_sealed_json(path, Peers) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Keep it on disk."""
        write_sealed_json(folder / _FILE, asdict(self))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.devices)}

    @cached_property
    def _matrix(self) -> PeerWeights:
        return from_lists(len(self.devices), self.weights, self.columns)

    def among(self, names: Iterable[str], freshness: Sequence[float] | None = None) -> PeerWeights:
        """The weights among some of them, see :func:`acme_fleet.messages.peer_weights.among`."""
        return among(self._matrix, [self._places[name] for name in names], freshness)
