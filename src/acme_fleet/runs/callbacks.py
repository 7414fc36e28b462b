"""Callbacks: what a run tells to whoever watches it, in Hugging Face's habit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line
from acme_fleet.runs.forecast import Earlier, Expected
from acme_fleet.runs.journal import Observer, PlanObserver
from acme_fleet.runs.notes import numbers_in
from acme_fleet.runs.summary import Summary


class Callback:
    """A watcher of a run; every method does nothing unless a subclass has it do something.

    Methods are called in the threads that work, one at a time for each stage. What one raises ends
    the run.
    """

    def on_run_begin(self, fleet: Fleet, out: Path) -> None:
        """A run begins, or goes on, in the run directory ``out``."""

    def on_stage_begin(self, actor: str, stage: str) -> None:
        """A stage begins: of the cloud, of an edge server or of a device."""

    def on_log(
        self, actor: str, stage: str, done: int, total: int, logs: Mapping[str, float]
    ) -> None:
        """A stage has done ``done`` of ``total`` parts: epochs, batches or steps.

        ``logs`` has ``train_loss``, ``eval_accuracy``, ``eval_perplexity`` or ``reward`` where the
        stage knows them.
        """

    def on_stage_end(self, actor: str, stage: str, seconds: float) -> None:
        """A stage is over."""

    def on_run_end(self, summary: Summary, out: Path) -> None:
        """The run is over, and everything is in its directory."""

    def on_run_error(self, error: BaseException) -> None:
        """The run ends early, by this error or an interruption."""


class CallbackObserver(Observer):
    """Tells callbacks, and another observer, what a journal tells."""

    def __init__(self, callbacks: Sequence[Callback], other: Observer | None = None) -> None:
        self._callbacks, self._other = callbacks, other
        self._begun: dict[tuple[str, str], float] = {}

    def plan(self, expected: Mapping[str, Expected], earlier: Earlier | None = None) -> None:
        """See :class:`PlanObserver`."""
        if isinstance(self._other, PlanObserver):
            self._other.plan(expected, earlier)

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        """See :class:`Observer`."""
        if self._other:
            self._other.stage(actor, name, done, total, note)
        key = (actor, name)
        if key not in self._begun and done < total:
            self._begun[key] = time.monotonic()
            for callback in self._callbacks:
                callback.on_stage_begin(actor, name)
        if done < total:
            if done:
                for callback in self._callbacks:
                    callback.on_log(actor, name, done, total, numbers_in(note))
        elif key in self._begun:
            seconds = time.monotonic() - self._begun.pop(key)
            for callback in self._callbacks:
                callback.on_log(actor, name, done, total, numbers_in(note))
                callback.on_stage_end(actor, name, seconds)


def run_watched(
    callbacks: Sequence[Callback],
    observer: Observer | None,
    fleet: Fleet,
    out: Path,
    work: Callable[[Observer | None], Summary],
) -> Summary:
    """Do a run's work, with its beginning, stages and end told to callbacks.

    Args:
        callbacks: of whoever watches; none is fine.
        observer: is told the stages too.
        fleet, out: of the run.
        work: with the observer that it is to tell.

    Raises:
        FleetError: if something else than callbacks is given, before anything is done.
    """
    if not callbacks:
        return work(observer)
    alone = isinstance(callbacks, Callback)
    if alone or not all(isinstance(callback, Callback) for callback in callbacks):
        raise FleetError(
            f"callbacks: give a list of instances of acme_fleet.Callback, [MyCallback()], and not "
            f"{one_line(repr(callbacks), 80)}"
        )
    for callback in callbacks:
        callback.on_run_begin(fleet, out)
    try:
        summary = work(CallbackObserver(callbacks, observer))
    except BaseException as error:
        for callback in callbacks:
            callback.on_run_error(error)
        raise
    for callback in callbacks:
        callback.on_run_end(summary, out)
    return summary
