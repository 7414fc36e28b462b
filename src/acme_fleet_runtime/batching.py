"""Requests that come at the same time are answered together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from acme_fleet_runtime.bounds import Busy
from acme_fleet_runtime.errors import AcmeError

Answer = list[float]


class _Request:
    def __init__(self, samples: Sequence[np.ndarray]) -> None:
        self.samples = samples
        self.answers: list[Answer | None] = [None] * len(samples)
        self.left = len(samples)
        self.error: AcmeError | None = None
        self.done = threading.Event()


class Batcher:
    """Runs a model in one thread, on all samples that wait, up to a number.

    Nobody waits for others to come: while one batch runs, the next one gathers.
    """

    def __init__(
        self,
        run: Callable[[Sequence[np.ndarray]], list[Answer]],
        largest: int,
        ran: Callable[[int, float], Any],
    ) -> None:
        """Start the thread.

        Args:
            run: answers of a batch.
            largest: samples of a batch.
            ran: is told the samples and the seconds of each batch.
        """
        self._run, self._largest, self._ran = run, largest, ran
        self._waiting: deque[tuple[_Request, int]] = deque()
        self._changed = threading.Condition()
        self._open = True
        threading.Thread(target=self._work, name="batches", daemon=True).start()

    def ask(self, samples: Sequence[np.ndarray]) -> list[Answer]:
        """Answers to samples, once their batches have run.

        Raises:
            Busy: if the server is ending.
            AcmeError: if the model failed.
        """
        if not samples:
            return []
        request = _Request(samples)
        with self._changed:
            if not self._open:
                raise Busy
            self._waiting.extend((request, number) for number in range(len(samples)))
            self._changed.notify()
        request.done.wait()
        if request.error is not None:
            raise request.error
        return [answer for answer in request.answers if answer is not None]

    def close(self) -> None:
        """Take no more; what waits is answered."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._waiting:
                    self._changed.wait()
                if not self._waiting:
                    return
                count = min(self._largest, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
            self._answer(batch)

    def _answer(self, batch: list[tuple[_Request, int]]) -> None:
        start, answers, error = time.perf_counter(), [], None
        try:
            answers = self._run([request.samples[number] for request, number in batch])
        except AcmeError as failed:
            error = failed
        except Exception as failed:  # noqa: BLE001 (the thread must live on)
            error = AcmeError(f"{type(failed).__name__}: {failed}")
        self._ran(len(batch), time.perf_counter() - start)
        for place, (request, number) in enumerate(batch):
            if error is None:
                request.answers[number] = answers[place]
            else:
                request.error = error
            request.left -= 1
            if not request.left:
                request.done.set()
