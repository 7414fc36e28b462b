"""Where a run keeps its things, and whether it may go on there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from acme_fleet.errors import RunError
from acme_fleet.files import replacing
from acme_fleet.fleet import Fleet
from acme_fleet.settings import differences

FLEET, SUMMARY, REPORT, EVENTS = "fleet.yaml", "summary.json", "report.html", "events.jsonl"
_MOST_CHANGES = 3


class RunDirectory:
    """``fleet.yaml``, ``summary.json``, ``report.html``, ``events.jsonl``, ``devices/<name>/``.

    ``cloud/`` and ``edges/<name>/`` hold what these servers need to go on after a stop.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(path: str | Path, fleet: Fleet, *, resume: bool) -> RunDirectory:
        """Start in an empty directory, or go on in that of the same fleet.

        Raises:
            RunError: if the directory holds something else; the message says what to do.
        """
        run = RunDirectory(Path(path))
        stored = run.path / FLEET
        if stored.exists():
            kept = Fleet.from_yaml(stored).model_dump(mode="json")
            changes = list(differences(kept, fleet.model_dump(mode="json")))
            if not resume and (changes or not run._is_bare()):
                raise RunError(
                    f"{run.path} already holds a run; choose another --out, or go on with it: "
                    f"{run.resume_command}"
                )
            if changes:
                raise RunError(
                    f"{run.path} is a run of another fleet or seed; choose another --out, or ask "
                    f"for the same:\n" + _shown(changes)
                )
        elif resume:
            raise RunError(f"nothing to resume: {stored} does not exist; run without --resume")
        elif run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise RunError(f"{run.path} is not an empty directory; choose another --out")
        else:
            run._start(fleet)
        return run

    def _is_bare(self) -> bool:
        """Whether a run has left its fleet and identity here and got no further."""
        files = {path for path in self.path.rglob("*") if path.is_file()}
        return files <= {self.path / FLEET, self.identity}

    def _start(self, fleet: Fleet) -> None:
        try:
            with replacing(self.path / FLEET) as file:
                file.write_text(fleet.to_yaml())
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error

    @staticmethod
    def open(path: str | Path) -> RunDirectory:
        """A directory that holds a run.

        Raises:
            RunError: if it does not.
        """
        run = RunDirectory(Path(path))
        if not (run.path / FLEET).exists():
            raise RunError(f"{run.path} holds no run: it has no {FLEET}")
        return run

    @property
    def resume_command(self) -> str:
        """What to type to go on with an interrupted run."""
        command = ["acme", "run", str(self.path / FLEET), "--out", str(self.path), "--resume"]
        if self.identity.exists():
            config = json.loads(self.identity.read_text())["config"]
            command += ["--engine", "flower", "--config", config]
        return shlex.join(command)

    @property
    def identity(self) -> Path:
        """What tells a run on many hosts from others, and the site file of its cloud."""
        return self.cloud / "identity.json"

    @property
    def fleet(self) -> Fleet:
        """The fleet that the run is of."""
        return Fleet.from_yaml(self.path / FLEET)

    @property
    def summary(self) -> Path:
        """``summary.json``."""
        return self.path / SUMMARY

    def finished(self) -> Path:
        """``summary.json`` of a run that is finished.

        Raises:
            RunError: if it is not, with the command that goes on with it.
        """
        if not self.summary.exists():
            raise RunError(f"{self.path} is not finished; go on with it: {self.resume_command}")
        return self.summary

    @property
    def report(self) -> Path:
        """``report.html``."""
        return self.path / REPORT

    @property
    def events(self) -> Path:
        """``events.jsonl``."""
        return self.path / EVENTS

    @property
    def cloud(self) -> Path:
        """State of the cloud server."""
        return self.path / "cloud"

    def edge(self, name: str) -> Path:
        """State of an edge server."""
        return self.path / "edges" / name

    def device(self, name: str) -> Path:
        """A device's folder: its model, and its private state below it."""
        return self.path / "devices" / name


def _shown(changes: list[str]) -> str:
    left = len(changes) - _MOST_CHANGES
    more = [f"and {left} more"] if left > 0 else []
    return "\n".join([*changes[:_MOST_CHANGES], *more])
