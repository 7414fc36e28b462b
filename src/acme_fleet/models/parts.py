"""Several checkpoints in one file: each has its own checksum, and all are replaced together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from acme_fleet.errors import DamagedError
from acme_fleet.models.storage import (
    described_by,
    saving,
    sealed_tensors,
    with_prefix,
    without_prefix,
)
from acme_fleet.outside import reading, regular
from acme_fleet.runs.atomic import replacing

_LOG = logging.getLogger(__name__)
Part = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors, and what is told of them."""
Made = TypeVar("Made")


class Parts:
    """The parts of a file, by name. The file is for this user alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Those that there are; none without a file.

        Raises:
            DamagedError: if the file cannot be read.
        """
        return sorted(self._stored(())[1])

    def read(self, name: str) -> Part:
        """A part's tensors, and what is told of them.

        Raises:
            DamagedError: if it is missing or damaged.
        """
        tensors, told = self._stored([name])
        if name not in told:
            raise DamagedError(f"cannot read {self.path}: it has no {name}")
        with reading(f"cannot read {self.path}", DamagedError):
            own = without_prefix(name, tensors)
            return own, described_by(self.path, own, json.loads(told[name]))

    def if_sound(self, name: str, made: Callable[[Part], Made]) -> Made | None:
        """Something made of a part, or none: it is missing, or damaged, which is logged.

        For parts that their owner can compute anew.
        """
        try:
            return made(self.read(name)) if name in self.names() else None
        except DamagedError as error:
            _LOG.warning("%s; it is computed anew", error)
            return None

    def write(self, parts: Mapping[str, Part], gone: Container[str] = ()) -> None:
        """Put parts into the file, in the place of those of their names.

        Args:
            parts: what is new.
            gone: names of others that leave. The rest stays, and damage to it too.

        Raises:
            WriteError: if they cannot be written.
            DamagedError: if the file cannot be read.
        """
        stay = [name for name in self.names() if name not in parts and name not in gone]
        tensors, told = self._stored(stay)
        told = {name: told[name] for name in stay}
        for name, part in parts.items():
            plain, document = sealed_tensors(*part)
            tensors |= with_prefix(name, plain)
            told[name] = json.dumps(document)
        with replacing(self.path, private=True) as file, saving(self.path):
            save_file(tensors, file, metadata=told or None)  # it writes no valid file with {}

    def _stored(self, names: Container[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors of these parts, unchecked, and what the file tells of all its parts."""
        with reading(f"cannot read {self.path}", DamagedError):
            if not self.path.exists():
                return {}, {}
            with safe_open(regular(self.path), framework="pt") as file:
                keys = [key for key in file.keys() if key.partition(".")[0] in names]  # noqa: SIM118
                return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
