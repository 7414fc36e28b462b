"""Features and models that a process's devices hold in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from acme_fleet.data.samples import Splits

Made = TypeVar("Made")
SPLITS = ("train", "validation", "test")


class FeatureMemory:
    """The features of a process's devices as long as they fit, and their models' common parts.

    Where the features of all devices do not fit, the devices that have worked last are held, and
    features of the others are read from disk again when they are asked for. Features of a device
    that exceed the limit alone are never held.
    """

    def __init__(self, most_bytes: int = 2**29) -> None:
        """Hold features of at most ``most_bytes`` (512 MiB) in all."""
        self._most = most_bytes
        self._held: dict[Path, Splits] = {}
        self._bytes = 0  # of all that is held
        self._model = ""  # that was received last
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> Splits | None:
        """The features that are held for a device's folder, or none."""
        with self._lock:
            found = self._held.pop(path, None)
            if found is not None:
                self._held[path] = found  # behind all others: it leaves last
            return found

    def put(self, path: Path, features: Splits) -> None:
        """Hold this for a device's folder, and forget the oldest ones where there is no room."""
        with self._lock:
            self._forget(path)
            size = _size_bytes(features)
            if size > self._most:
                return
            while self._bytes > self._most - size:
                self._forget(next(iter(self._held)))
            self._held[path] = features
            self._bytes += size

    def drop(self, path: Path) -> None:
        """Forget a device's folder."""
        with self._lock:
            self._forget(path)

    def _forget(self, path: Path) -> None:
        if (old := self._held.pop(path, None)) is not None:
            self._bytes -= _size_bytes(old)

    def once(self, model: str, part: str, make: Callable[[], Made]) -> Made:
        """A part of a model that was received, which nobody changes; ``model`` is its checksum.

        Devices that received the same model share it; parts of the last such model are held.
        """
        with self._lock:
            if model != self._model:
                self._model, self._made = model, {}
            if part not in self._made:
                self._made[part] = make()
            return self._made[part]


def _size_bytes(features: Splits) -> int:
    inputs = [getattr(features, split).inputs.values() for split in SPLITS]
    return sum(tensor.nbytes for tensors in inputs for tensor in tensors)
