"""Run directories that are watched: which there are, and how each stands."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acme_fleet.errors import AcmeError, DamagedError, RunError
from acme_fleet.outside import one_line, read_regular, reading, resolved
from acme_fleet.report.live.fleet_state import FleetState
from acme_fleet.report.words import left_text
from acme_fleet.runs.directory import (
    CHOICES,
    FLEET,
    PROGRESS,
    Directory,
    RunDirectory,
    is_run,
)
from acme_fleet.runs.forecast import Left
from acme_fleet.runs.journal import read_on
from acme_fleet.runs.sealed import read_marked_json, read_sealed_json
from acme_fleet.stratos.budget import Budget, Spent
from acme_fleet.stratos.run_directory import DistillDirectory

_MOST_RUNS = 200
_LOOK_AGAIN_S, _READ_AGAIN_S = 2.0, 0.5
TASK = DistillDirectory.document


class Watched:
    """One run, read again when it is asked for and something may have changed. Safe for threads."""

    def __init__(self, path: Path, name: str) -> None:
        """The run in a directory of one; ``name`` tells it from the others that are watched."""
        self.path, self.name = path, name
        self.kind = "fleet" if (path / FLEET).exists() else "distill"
        self._directory: Directory[Any] = (
            RunDirectory(path) if self.kind == "fleet" else DistillDirectory(path)
        )
        self._lock = threading.Lock()
        self._state: FleetState | None = None
        self._settings: Any = None
        self._offset, self._read_at = 0, 0.0
        self._shown: dict[str, Any] = {}

    def shown(self) -> dict[str, Any]:
        """The whole state; never fails: a run that cannot be read is in the state of that name."""
        with self._lock:
            if time.monotonic() - self._read_at >= _READ_AGAIN_S:
                self._shown = self._or_unreadable(self._read)
                self._read_at = time.monotonic()
            return self._shown

    def brief(self) -> dict[str, str]:
        """Its name and status, for a list; no event is read."""
        with self._lock:
            told = self._or_unreadable(self._standing)
        return {key: told[key] for key in ("id", "name", "kind", "status")}

    def _or_unreadable(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return read()
        except (AcmeError, OSError, KeyError, TypeError, ValueError) as error:
            reason = one_line(str(error) or type(error).__name__, 500)
            return {**self._about(), "status": "unreadable", "reason": reason}

    def _standing(self) -> dict[str, Any]:
        if self._settings is None:
            self._settings = self._directory.as_written()
        progress = _progress(self.path / PROGRESS)
        status = _status(progress, finished=self._directory.summary.exists())
        return {**self._about(), "name": self._settings.name, **status}

    def _about(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "kind": self.kind,
            "name": self.name,
            "path": str(self.path),
            "resume": self._directory.resume_command,
            "report": (self.path / "report.html").exists(),
            "now": [],
        }

    def _read(self) -> dict[str, Any]:
        about, summary = self._standing(), None
        if self._directory.summary.exists():
            summary = read_marked_json(self._directory.summary)
        if self.kind == "fleet":
            return about | self._fleet(summary)
        return about | _distillation(self.path, self._settings, summary)

    def _fleet(self, summary: dict[str, Any] | None) -> dict[str, Any]:
        events = self.path / "events.jsonl"
        if self._state is None or (self._offset and _size(events) < self._offset):
            self._state, self._offset = FleetState(self._settings), 0
        found, self._offset = read_on(events, self._offset)
        self._state.add(found)
        choices = []
        if (self.path / CHOICES).exists():
            choices = read_sealed_json(self.path / CHOICES, list[dict[str, Any]])
        return self._state.shown(choices, summary)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _progress(path: Path) -> dict[str, Any]:
    """The content of ``progress.json``; empty where an older version ran."""
    if not path.exists():
        return {}
    with reading(f"cannot read {path}", DamagedError):
        content = json.loads(read_regular(path))
    return content if isinstance(content, dict) else {}


def _status(progress: dict[str, Any], *, finished: bool) -> dict[str, Any]:
    """``running``, ``finished``, ``failed``, ``interrupted`` or ``stopped``, and why."""
    ended = progress.get("ended")
    if ended is not None:
        return {"status": ended["how"], "reason": ended["reason"]}
    if progress and _alive(progress.get("pid")):
        told = {"now": progress["stages"], "updated": progress["updated"]}
        return {"status": "running", "reason": "", "whole": _whole(progress), **told}
    if finished:
        return {"status": "finished", "reason": ""}
    reason = "its process has ended without a word: it was killed, or the machine stopped"
    return {"status": "stopped", "reason": reason if progress else "nothing works on it"}


def _whole(progress: Mapping[str, Any]) -> dict[str, Any] | None:
    """The share of the whole run that is done, and in words the time that is left."""
    told = progress.get("whole")
    if not told:
        return None
    words = None
    if told["left_s"] is not None:
        left = Left(told["left_s"], told.get("later_s", told["left_s"]))
        silence = datetime.now(UTC) - datetime.fromisoformat(progress["updated"])
        words = left_text(left.after(silence.total_seconds()), at_most=told["at_most"])
    return {"done": told["done"], "left": words}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True


def _distillation(path: Path, request: Any, summary: dict[str, Any] | None) -> dict[str, Any]:
    """A run of ``acme distill``: the pair and the server, time and money spent, and the marks."""
    run = DistillDirectory(path)
    chosen = read_sealed_json(run.choice, dict[str, Any]) if run.choice.exists() else {}
    spent = read_sealed_json(run.spent, Spent) if run.spent.exists() else Spent()
    budget = Budget.of(request.limits, chosen.get("usd_per_hour", 0.0))
    trained = read_sealed_json(run.trained, dict[str, Any]) if run.trained.exists() else None
    seconds = budget.seconds
    return {
        "name": request.name,
        "seed": request.seed,
        "chosen": chosen or None,
        "spent": {"training_s": spent.training, "evaluation_s": spent.evaluation},
        "usd": budget.usd(spent.training + spent.evaluation),
        "budget_s": None if seconds == float("inf") else seconds,
        "trained": trained,
        "result": summary
        and {key: summary[key] for key in ("student", "start", "teacher", "training_usd")},
    }


class Board:
    """The runs of some folders: each is a run, or holds runs."""

    def __init__(self, places: Iterable[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """Look at all of them; what is in a folder that can come to be is shown when it is there.

        Raises:
            RunError: if a place is a file, or the folder around it is missing.
        """
        self._places, self._clock = list(places), clock
        for place in self._places:
            if place.exists() and not place.is_dir():
                raise RunError(f"{place}: it is a file; name a run directory, or a folder of runs")
            if not place.absolute().parent.is_dir():
                raise RunError(f"{place}: no such folder, and none around it")
        self.awaited = [place for place in self._places if not place.exists()]
        self._lock = threading.Lock()
        self._runs: dict[str, Watched] = {}
        self._looked_at: float | None = None

    def runs(self) -> dict[str, Watched]:
        """All runs by name; new ones are found when they are there."""
        with self._lock:
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= _LOOK_AGAIN_S:
                self._looked_at = now
                self._look()
            return dict(self._runs)

    def _look(self) -> None:
        known = {watched.path: name for name, watched in self._runs.items()}
        found = {resolved(path): path for path in self._found()}
        for path in [path for path in known if path not in found]:
            del self._runs[known[path]]
        for path, shown in list(found.items())[:_MOST_RUNS]:
            if path not in known:
                name = self._free_name(shown)
                self._runs[name] = Watched(path, name)

    def _free_name(self, path: Path) -> str:
        name = one_line(resolved(path).name, 80)
        others = (f"{name} ({number})" for number in range(2, _MOST_RUNS + 2))
        return next(each for each in (name, *others) if each not in self._runs)

    def _found(self) -> list[Path]:
        """Run directories, those that changed last first."""
        found = []
        for place in self._places:
            if _is_run(place):
                found.append(place)
                continue
            with suppress(OSError):
                found += [path for path in place.iterdir() if _is_run(path)]
        return sorted(found, key=_changed, reverse=True)


def _is_run(path: Path) -> bool:
    if path.name.startswith("."):  # of an update that is being made
        return False
    with suppress(RunError):
        return any(is_run(path, document) for document in (FLEET, TASK))
    return False


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
