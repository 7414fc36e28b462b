"""The edge server's documents on disk, typed: what is read is of this shape or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from acme_fleet.config.devices import Part
from acme_fleet.models.storage import read_tensors
from acme_fleet.runs.sealed import typed

COARSE, CONTENDERS = "coarse.safetensors", "contenders.json"
"""Files of a group: its coarse model, and the headers that were tried."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StoredPart(_Document):
    """A part that a backbone is chosen for, and its devices."""

    part: Part
    members: list[str]


class StoredChoice(_Document):
    """An evaluation on the samples for the final choice."""

    loss: float
    accuracy: float


class StoredContender(_Document):
    """A header that was tried."""

    name: str
    params: int
    choice: StoredChoice
    evaluated: int


class Coarse(_Document):
    """The description beside a coarse header's tensors."""

    plan: dict[str, Any]
    rewards: list[float]
    contenders: list[dict[str, Any]]


def read_coarse(path: Path) -> tuple[dict[str, Tensor], Coarse]:
    """A coarse model: tensors ``backbone.*``, ``header.*``, ``linear.*``, and what is told of them.

    Raises:
        DamagedError: if the file is missing or damaged.
    """
    tensors, about = read_tensors(path)
    return tensors, typed(path, Coarse, about)
