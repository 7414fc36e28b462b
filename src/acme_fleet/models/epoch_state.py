"""Where a training stage stands after an epoch, on disk, so that a stop loses no more than one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from acme_fleet.models.io import read_tensors, with_prefix, without_prefix, write_tensors
from acme_fleet.models.training import Optimization


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
            How many epochs are finished; 0, and nothing is changed, where there is no file.

        Raises:
            RunError: if the file is damaged.
        """
        if not self._path.exists():
            return 0
        tensors, about = read_tensors(self._path)
        module.load_state_dict(without_prefix("module", tensors))
        optimization.restore(without_prefix("optimizer", tensors), about["schedule"])
        generator.set_state(tensors["generator"])
        return about["epochs"]

    def remove(self) -> None:
        """Delete the file: the stage is over."""
        self._path.unlink(missing_ok=True)
