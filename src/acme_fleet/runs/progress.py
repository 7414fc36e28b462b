"""``progress.json``: what a run is at, for whoever watches it from another process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acme_fleet.errors import AcmeError, WriteError
from acme_fleet.outside import one_line, read_regular
from acme_fleet.runs.atomic import replacing
from acme_fleet.runs.directory import PROGRESS
from acme_fleet.runs.forecast import Earlier, Expected, Forecast
from acme_fleet.runs.journal import Observer, PlanObserver

_EVERY_S = 0.5
_MOST_STAGES = 200
_LONGEST = 1000


class ProgressFile:
    """An observer that keeps the stages which are not over in a file, and passes them on.

    The file is a convenience: where it cannot be written, the run goes on.
    """

    def __init__(self, folder: Path, then: Observer | None = None) -> None:
        """``then`` is told the same."""
        self._path, self._then = folder / PROGRESS, then
        self._stages: dict[tuple[str, str], dict[str, Any]] = {}
        self._before = begun_stages(folder)
        self._begun: dict[tuple[str, str], float] = {}
        self._forecast: Forecast | None = None
        self._ended: dict[str, str] | None = None
        self._lock = threading.Lock()
        self._written, self._timer = 0.0, None

    _timer: threading.Timer | None

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        """See :class:`acme_fleet.runs.journal.Observer`."""
        with self._lock:
            key = actor, name
            if self._forecast:
                self._forecast.stage(actor, name, done / total if total else 1.0, time.monotonic())
            if done == total:
                self._stages.pop(key, None)
                self._begun.pop(key, None)
            else:
                now = time.monotonic()
                spent = self._before.get(key, 0.0) + now - self._begun.setdefault(key, now)
                began = self._stages.get(key, {}).get("began") or _now()
                self._stages[key] = {
                    "actor": one_line(actor, 100),
                    "stage": one_line(name, 100),
                    "done": done,
                    "total": total,
                    "note": one_line(note, 200),
                    "began": began,
                    "spent": round(spent, 3),
                }
            self._write_soon()
        if self._then:
            self._then.stage(actor, name, done, total, note)

    def plan(self, expected: Mapping[str, Expected], earlier: Earlier | None = None) -> None:
        """See :class:`acme_fleet.runs.journal.PlanObserver`."""
        self._forecast = Forecast(expected, earlier)
        if isinstance(self._then, PlanObserver):
            self._then.plan(expected, earlier)

    def end(self, how: str, reason: str = "") -> None:
        """Note that the run is not at work any more: ``finished``, ``interrupted``, ``failed``."""
        with self._lock:
            self._ended = {"how": how, "reason": one_line(reason, _LONGEST)}
            if self._timer:
                self._timer.cancel()
            self._write()

    def _write_soon(self) -> None:
        """Write at most twice a second, and what came last in any case."""
        if self._timer is None:
            wait = max(0.0, self._written + _EVERY_S - time.monotonic())
            if wait == 0:
                self._write()
            else:
                self._timer = threading.Timer(wait, self._write_late)
                self._timer.daemon = True
                self._timer.start()

    def _write_late(self) -> None:
        with self._lock:
            if self._ended is None:
                self._write()

    def _whole(self) -> dict[str, float | None] | None:
        """The share of the whole run that is done, and the seconds that are left, about."""
        whole = self._forecast
        if whole is None:
            return None
        left = whole.left()
        told = {"left_s": left and left.seconds, "later_s": left and left.later_s}
        return {"done": whole.done, "at_most": whole.at_most, **told}

    def _write(self) -> None:
        self._written, self._timer = time.monotonic(), None
        document = {
            "pid": os.getpid(),
            "updated": _now(),
            "stages": list(self._stages.values())[-_MOST_STAGES:],
            "whole": self._whole(),
            "ended": self._ended,
        }
        with suppress(WriteError), replacing(self._path, durable=False) as file:
            file.write_text(json.dumps(document), encoding="utf-8")


def begun_stages(folder: Path) -> dict[tuple[str, str], float]:
    """Seconds spent on each stage that a process before left unfinished, by actor and name."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        stages = json.loads(read_regular(folder / PROGRESS))["stages"]
        return {(one["actor"], one["stage"]): float(one["spent"]) for one in stages}
    return {}


@contextmanager
def progress_file(folder: Path, then: Observer | None = None) -> Iterator[ProgressFile]:
    """Keep ``progress.json`` of a run while the block lasts, and note how it ended.

    Args:
        folder: of the run.
        then: an observer that is told the same.
    """
    progress = ProgressFile(folder, then)
    try:
        yield progress
    except AcmeError as error:
        progress.end("failed", str(error))
        raise
    except Exception as error:
        progress.end("failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException:
        progress.end("interrupted")
        raise
    progress.end("finished")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
