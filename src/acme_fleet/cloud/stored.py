"""Files of the cloud server that are no model: importance, and quality of the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict

from acme_fleet.cloud.objectives import Quality
from acme_fleet.cost.variant import Variant
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.storage import read_tensors
from acme_fleet.runs.sealed import read_sealed_json, write_sealed_json

_KEPT = "kept.json"


@dataclass(frozen=True)
class _StoredQuality:
    """``candidates.json``: a number for each candidate; a loss need not be finite.

    Without labels there are no accuracies. ``estimated`` is missing where nothing is.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    losses: list[float]
    accuracies: list[float] | None
    estimated: list[bool] | None = None


def write_quality(path: Path, quality: Quality) -> None:
    """Write losses and accuracies of the candidates, in the grid's order.

    Raises:
        WriteError: if it cannot be written.
    """
    accuracies = None if quality.scores is None else quality.scores.tolist()
    stored = vars(_StoredQuality(quality.losses.tolist(), accuracies))
    if quality.estimated is None:
        del stored["estimated"]  # the file is the one of before there were estimates
    else:
        stored["estimated"] = quality.estimated.tolist()
    write_sealed_json(path, stored)


def read_quality(path: Path) -> Quality:
    """Read what :func:`write_quality` wrote.

    Raises:
        DamagedError: if the file is missing or damaged.
    """
    stored = read_sealed_json(path, _StoredQuality)
    accuracies = None if stored.accuracies is None else np.array(stored.accuracies)
    estimated = None if stored.estimated is None else np.array(stored.estimated)
    return Quality(np.array(stored.losses), accuracies, estimated=estimated)


@dataclass(frozen=True)
class Kept:
    """A candidate that the devices of a part have already, and keep."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    edge: str
    part: int
    variant: Variant


def write_kept(folder: Path, kept: Sequence[Kept]) -> None:
    """Write the candidates that devices keep into the cloud server's folder.

    Raises:
        WriteError: if they cannot be written.
    """
    write_sealed_json(folder / _KEPT, [asdict(each) for each in kept])


def read_kept(folder: Path) -> dict[tuple[str, int], Variant]:
    """Read what :func:`write_kept` wrote, by edge server and number of the part; or nothing.

    Raises:
        DamagedError: if the file is damaged.
    """
    path = folder / _KEPT
    stored = read_sealed_json(path, list[Kept]) if path.exists() else []
    return {(each.edge, each.part): each.variant for each in stored}


def read_importance(path: Path) -> Importance:
    """The importance of heads and neurons by which the reference was reordered.

    Raises:
        DamagedError: if the file is damaged.
    """
    tensors, _ = read_tensors(path)
    return Importance(tensors["heads"], tensors["neurons"])
