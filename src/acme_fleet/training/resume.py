"""A training stage's state after an epoch, on disk, so that a stop loses at most one epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acme_fleet.models.storage import read_tensors, with_prefix, without_prefix, write_tensors
from acme_fleet.runs.atomic import remove
from acme_fleet.runs.sealed import STRICT, if_sound, typed
from acme_fleet.training.loop import Optimization


@dataclass(frozen=True)
class _Told:
    """The description beside the tensors."""

    __pydantic_config__ = STRICT

    epochs: int
    schedule: dict[str, Any]


class EpochState:
    """A file with all that decides the next epoch: model, optimiser, schedule, generator.

    A stage that goes on from it ends bit for bit as if it had not been interrupted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(
        self, epochs: int, module: nn.Module, optimization: Optimization, generator: torch.Generator
    ) -> None:
        """Write the state after ``epochs`` epochs; the file before is replaced."""
        tensors, schedule = optimization.state()
        named = {
            **with_prefix("module", module.state_dict()),
            **with_prefix("optimizer", tensors),
            "generator": generator.get_state(),
        }
        write_tensors(self._path, named, {"epochs": epochs, "schedule": schedule})

    def restore(
        self, module: nn.Module, optimization: Optimization, generator: torch.Generator
    ) -> int:
        """Bring everything to where :meth:`save` left it.

        Returns:
            How many epochs are finished; 0, and nothing is changed, where there is no file, or a
            damaged one: the stage is done from its beginning.
        """
        stored = if_sound(self._path, self._read)
        if stored is None:
            return 0
        tensors, told = stored
        module.load_state_dict(without_prefix("module", tensors))
        optimization.restore(without_prefix("optimizer", tensors), told.schedule)
        generator.set_state(tensors["generator"])
        return told.epochs

    def _read(self, path: Path) -> tuple[dict[str, Tensor], _Told]:
        tensors, about = read_tensors(path)
        return tensors, typed(path, _Told, about)

    def remove(self) -> None:
        """Delete the file: the stage is over."""
        remove(self._path)
