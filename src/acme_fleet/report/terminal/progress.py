"""Progress of a run: bars in a terminal or a notebook, lines in a log file."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from acme_fleet.outside import one_line
from acme_fleet.report.words import brief_duration_text, left_text
from acme_fleet.runs.forecast import Earlier, Expected, Forecast

_FINISHED = 20  # bars of finished stages that stay
_EVERY_S, _BARS_EVERY_S = 30.0, 1.0
"""A log file gets a line at least so often; the time left of a terminal is written anew."""
_WHOLE = "whole run"
_MARGIN = 4  # lines of the terminal that bars leave


class _Elapsed(ProgressColumn):
    """The time that a stage has taken, written as all durations are."""

    def render(self, task: Task) -> Text:
        """See :class:`ProgressColumn`."""
        elapsed = task.finished_time if task.finished else task.elapsed
        whole = (elapsed or 0.0) + task.fields["before"]
        return Text(brief_duration_text(whole), style="progress.elapsed")


class _Left(ProgressColumn):
    """The time that a stage has left, where it is the whole that is shown."""

    def render(self, task: Task) -> Text:
        """See :class:`ProgressColumn`."""
        if not task.fields["alone"] or task.finished or task.time_remaining is None:
            return Text("")
        return Text(left_text(task.time_remaining), style="progress.remaining")


class LiveStages:
    """Shows each stage of each actor, and how long the whole run has left.

    An observer of the journal. Bars in a terminal and in a notebook with ipywidgets; elsewhere a
    line for each finished stage, and at least every half minute one for the stage under way.
    """

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._console = Console(markup=False)
        widgets = self._console.is_jupyter and find_spec("ipywidgets") is not None
        self._live = self._console.is_terminal or widgets
        # A line each, however long a note is: bar and note share what the other columns leave.
        self._progress = Progress(
            _text("{task.fields[actor]:<14}", "bold", max_width=16),
            _text("{task.description:<22}", max_width=24),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            _text("{task.fields[of]:>5}"),
            _Elapsed(table_column=Column(no_wrap=True)),
            _Left(table_column=Column(no_wrap=True)),
            _text("{task.fields[note]}", "dim", ratio=3),
            console=self._console,
            disable=not self._live,
            expand=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._finished: list[tuple[str, str]] = []
        self._whole: TaskID | None = None
        self._forecast: Forecast | None = None
        self._heard = time.monotonic()  # the latest word on any stage
        self._lock = threading.Lock()
        self._begun: dict[tuple[str, str], float] = {}
        self._before: dict[tuple[str, str], float] = {}  # seconds before an interruption
        self._now: tuple[str, float] | None = None  # the stage under way, and its beginning
        self._told = time.monotonic()
        self._every_s = every_s
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        """Start the display."""
        self._progress.start()
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the display; finished stages stay on the screen."""
        self._ended.set()
        self._heartbeat.join()
        self._progress.stop()

    def plan(self, expected: Mapping[str, Expected], earlier: Earlier | None = None) -> None:
        """See :class:`acme_fleet.runs.journal.PlanObserver`."""
        self._forecast = Forecast(expected, earlier)
        self._whole = self._progress.add_task("", total=1.0, **_fields(_WHOLE))
        for (actor, name), spent in (earlier.begun if earlier else {}).items():
            self._before[one_line(actor, 40), one_line(name, 40)] = spent

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        """See :class:`acme_fleet.runs.journal.Observer`."""
        key = (one_line(actor, 40), one_line(name, 40))
        note = one_line(note, 200)  # bars cut it where the screen ends
        with self._lock:
            self._heard = time.monotonic()
            if self._forecast is not None:
                self._forecast.stage(actor, name, done / total if total else 1.0, self._heard)
            if self._live:
                self._draw(key, done, total, note)
            else:
                self._log(key, done, total, note)

    def _left(self) -> str:
        """The time that the whole run has left, in words; empty where it is not known."""
        left = self._forecast.left() if self._forecast else None
        if self._forecast is None or left is None or self._forecast.done >= 1:
            return ""
        silence = time.monotonic() - self._heard
        return left_text(left.after(silence), at_most=self._forecast.at_most)

    # --- bars ---

    def _draw(self, key: tuple[str, str], done: int, total: int, note: str) -> None:
        if key not in self._tasks:
            before, alone = self._before.pop(key, 0.0), self._forecast is None
            fields = _fields(key[0], before=before, alone=alone)
            self._tasks[key] = self._progress.add_task(key[1], total=total, **fields)
        of = f"{done}/{total}"
        update = {"completed": done, "total": total, "note": note, "of": of}
        self._progress.update(self._tasks[key], **update)
        if self._forecast is not None and self._whole is not None:
            share = self._forecast.done
            update = {"completed": share, "of": f"{share:.0%}", "description": self._left()}
            self._progress.update(self._whole, **update)
        if done == total and key not in self._finished:
            self._finished.append(key)
        room = self._console.height - _MARGIN
        while self._finished and (len(self._finished) > _FINISHED or len(self._tasks) > room):
            self._progress.remove_task(self._tasks.pop(self._finished.pop(0)))

    # --- lines ---

    def _log(self, key: tuple[str, str], done: int, total: int, note: str) -> None:
        before = self._before.pop(key, 0.0)
        begun = self._begun.setdefault(key, time.monotonic() - before)
        if done == total:
            taken = time.monotonic() - self._begun.pop(key, begun)
            if not self._begun:  # what comes next may take long to begin
                self._now = f"{key[0]}: after {key[1]}", time.monotonic()
            self._say(
                f"{key[0]}: {key[1]} done in {brief_duration_text(taken)}{note and f'; {note}'}"
            )
        else:
            told = f" {done} of {total}" if total > 1 else ""
            self._now = f"{key[0]}: {key[1]}{told}{note and f'; {note}'}", begun

    def _tell(self) -> None:
        """Say now and then what is under way, and what is left, until the display ends."""
        while not self._ended.wait(_BARS_EVERY_S if self._live else self._every_s / 4):
            with self._lock:
                if self._live and self._whole is not None:
                    self._progress.update(self._whole, description=self._left())
                if self._now is None or time.monotonic() < self._told + self._every_s:
                    continue
                left = self._left()
                rest = f"; the whole run has {left}" if left else ""
                words, begun = self._now
                self._say(f"{words} ({brief_duration_text(time.monotonic() - begun)} so far{rest})")

    def _say(self, line: str) -> None:
        self._told = time.monotonic()
        self._console.print(line, highlight=False, soft_wrap=True)


def _text(form: str, style: str = "none", **column: Any) -> TextColumn:
    """A column of texts that are cut where they are too long."""
    own = Column(no_wrap=True, overflow="ellipsis", **column)
    return TextColumn(form, style=style, markup=False, table_column=own)


def _fields(actor: str, *, before: float = 0.0, alone: bool = False) -> dict[str, Any]:
    """``before``: seconds before an interruption. ``alone``: no plan tells of the whole."""
    return {"actor": actor, "of": "", "note": "", "before": before, "alone": alone}
