"""Bounds on what a server takes at once, so that its memory is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Busy(Exception):
    """More is asked at once than there is room for."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what a server takes at once.

    Attributes:
        body_bytes: of one request.
        bodies_bytes: of all requests that are being read.
        pixels: of one image.
        samples: of one request.
        characters: of one text.
        batch: samples that the model answers together.
        waiting: samples of all requests.
        waiting_bytes: of them, as the model takes them; of a language model, what it remembers.
        connections: open ones.
        idle_s: seconds that a connection may say nothing.
        body_s: seconds that a body may take.
    """

    body_bytes: int = 2**23
    bodies_bytes: int = 2**28
    pixels: int = 2**24
    samples: int = 256
    characters: int = 100_000
    batch: int = 32
    waiting: int = 4096
    waiting_bytes: int = 2**28
    connections: int = 2048
    idle_s: float = 20.0
    body_s: float = 60.0


class Budget:
    """A number of units that threads share; what is not there is refused, and not waited for."""

    def __init__(self, units: int) -> None:
        """Begin with all units."""
        self._units, self._taken, self._lock = units, 0, threading.Lock()

    @property
    def taken(self) -> int:
        """Units that somebody has."""
        return self._taken

    @contextmanager
    def having(self, units: int) -> Iterator[None]:
        """Have units inside the block.

        Raises:
            Busy: if they are not there.
        """
        self.take(units)
        try:
            yield
        finally:
            self.give(units)

    def take(self, units: int) -> None:
        """Have units from here on.

        Raises:
            Busy: if they are not there.
        """
        with self._lock:
            if self._taken + units > self._units:
                raise Busy
            self._taken += units

    def give(self, units: int) -> None:
        """Give units back."""
        with self._lock:
            self._taken -= units
