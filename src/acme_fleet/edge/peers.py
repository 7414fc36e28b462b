"""Devices that personalise together: who listens to whom, and whose masks have whose in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from acme_fleet.runs.sealed import STRICT, read_sealed_json, write_sealed_json

_FILE = "similarity.json"


def present(
    weights: Float[np.ndarray, "devices devices"],
    index: list[int],
    freshness: Sequence[float] | None = None,
) -> Float[np.ndarray, "present present"]:
    """The weights among those who count in a round, rows summing to 1 again.

    Args:
        weights: Ŵ of all devices.
        index: the rows of those who count.
        freshness: how much each of them counts for the others, in their order; 1 by default. A
            device's weight for itself stays.
    """
    chosen = weights[np.ix_(index, index)]
    if freshness is not None:
        own = np.diag(chosen).copy()
        chosen = chosen * np.asarray(freshness)
        np.fill_diagonal(chosen, own)
    return chosen / chosen.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Peers:
    """Those whose feature samples arrived.

    Attributes:
        devices: their names.
        weights: Ŵ of Eq. 20 as lists, row = receiver.
        keys: public keys by name; empty without masking.
    """

    __pydantic_config__ = STRICT

    devices: list[str]
    weights: list[list[float]]
    keys: dict[str, str] = field(default_factory=dict)

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

    def among(
        self, names: Iterable[str], freshness: Sequence[float] | None = None
    ) -> Float[np.ndarray, "present present"]:
        """The weights among some of them, see :func:`present`."""
        index = [self.devices.index(name) for name in names]
        return present(np.array(self.weights), index, freshness)
