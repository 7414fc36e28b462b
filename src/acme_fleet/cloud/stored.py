"""Files of the cloud server that are no model: importance, and quality of the candidates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict

from acme_fleet.cloud.objectives import Quality
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.storage import read_tensors
from acme_fleet.runs.sealed import read_sealed_json, write_sealed_json


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


def read_importance(path: Path) -> Importance:
    """The importance of heads and neurons by which the reference was reordered.

    Raises:
        DamagedError: if the file is damaged.
    """
    tensors, _ = read_tensors(path)
    return Importance(tensors["heads"], tensors["neurons"])
