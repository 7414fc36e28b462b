"""The layout of a run directory, and the rules for going on in one."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from acme_fleet.config.base import differences
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import DamagedError, FleetError, RunError
from acme_fleet.failures import called
from acme_fleet.outside import read_regular, reading
from acme_fleet.runs.atomic import is_partial, replacing
from acme_fleet.runs.locks import LOCK, holder
from acme_fleet.runs.sealed import STRICT, checksum, read_sealed_json

FLEET, SUMMARY, REPORT, EVENTS = "fleet.yaml", "summary.json", "report.html", "events.jsonl"
PROGRESS, CHOICES, ARTIFACTS = "progress.json", "choices.json", "artifacts"
_CHECKSUM = "# checksum, written by the run: "
_MOST_CHANGES = 3


class Written(Protocol):
    """Settings that can be written as YAML."""

    def to_yaml(self) -> str:
        """With every default written out."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """As plain values."""
        ...


Kind = TypeVar("Kind", bound=Written)


@dataclass(frozen=True)
class Identity:
    """A run on many hosts.

    Attributes:
        run: what tells it from others, on every host.
        config: the site file of its cloud.
    """

    __pydantic_config__ = STRICT

    run: str
    config: str


class Directory(ABC, Generic[Kind]):
    """A directory of one run of settings, which lie in it with a checksum.

    Attributes:
        document: name of the file of settings. holds: what the run is of, for errors.
    """

    document: ClassVar[str]
    holds: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Kind:
        """The settings in a file.

        Raises:
            FleetError: if they are wrong.
        """

    @property
    @abstractmethod
    def resume_command(self) -> str:
        """The command that goes on with an interrupted run."""

    @classmethod
    def create(cls, path: str | Path, settings: Kind, *, resume: bool) -> Self:
        """Start in an empty directory, or go on in that of the same settings.

        ``resume`` starts too, where there is nothing to go on with.

        Raises:
            RunError: if the directory holds something else; the message says what to do.
        """
        run = cls(Path(path))
        if run.exists():
            if not resume and (run._changes(settings) or not run._is_bare()):
                raise run._begun_already()
            run.require_same(settings)
        else:
            run._refuse_others()
            run._start(settings)
        return run

    def require_same(self, settings: Kind) -> None:
        """Refuse to go on with a run of other settings; where no run is, nothing is refused.

        Raises:
            RunError: naming what differs, and the command that goes on.
        """
        if self.exists() and (changes := self._changes(settings)):
            raise RunError(
                f"{self.path} is a run of another {self.holds} or seed; choose another --out, or "
                f"go on with that run: {self.resume_command}\nWhat differs:\n{_shown(changes)}"
            )

    def _changes(self, settings: Kind) -> list[str]:
        kept = self.as_written(settings).model_dump(mode="json")
        return list(differences(kept, settings.model_dump(mode="json")))

    def exists(self) -> bool:
        """True if a run was begun here.

        Raises:
            RunError: if the system does not let one look.
        """
        with reading(self.path, RunError):
            return (self.path / self.document).exists()

    def begun(self) -> bool:
        """True if a run has done something here that it can go on with."""
        return self.exists() and not self._is_bare()

    def require_new(self) -> None:
        """Accept a place where nothing is, or an empty directory.

        Raises:
            RunError: if it is something else; the message says what to do.
        """
        if self.exists():
            raise self._begun_already()
        self._refuse_others()

    def require_startable(self) -> None:
        """Refuse, before long work, a place where a run cannot be started.

        Raises:
            RunError: if a run has done something here, or something else is here.
        """
        if self.begun():
            raise self._begun_already()
        if not self.exists():
            self._refuse_others()

    def _begun_already(self) -> RunError:
        told = f"{self.path} already holds a run; choose another --out, or"
        if at_work := self._at_work():
            return RunError(f"{told} wait: {at_work}")
        return RunError(f"{told} go on with it: {self.resume_command}")

    def _at_work(self) -> str | None:
        """Another process that works here, and how to watch it."""
        process = holder(self.path / LOCK)
        if process is None:
            return None
        watch = f"{called()} ui {shlex.quote(str(self.path))}"
        return f"process {process} is at work on it; watch it with: {watch}"

    def _is_bare(self) -> bool:
        """True if a run has left its settings and identity here and nothing else."""
        files = {path for path in self.path.rglob("*") if path.is_file()}
        return files <= self._bare

    @property
    def _bare(self) -> set[Path]:
        """Files of a run that has done nothing yet."""
        return {self.path / self.document, self.path / LOCK, self.path / PROGRESS}

    def _refuse_others(self) -> None:
        with reading(self.path, RunError):
            taken = self.path.exists() and (
                not self.path.is_dir()
                or any(p.name != LOCK and not is_partial(p) for p in self.path.iterdir())
            )
        if taken:
            raise RunError(
                f"{self.path} is not an empty directory, and has no {self.document} of a run; "
                f"choose another --out"
            )

    def _start(self, settings: Kind) -> None:
        text = settings.to_yaml()
        with replacing(self.path / self.document) as file:
            # First, so that a file which was cut off does not pass for an older version's.
            file.write_text(f"{_CHECKSUM}{checksum(text.encode())}\n{text}", encoding="utf-8")

    def as_written(self, same: Kind | None = None) -> Kind:
        """The settings of the run, if their file is as it was written.

        An older version's file has no checksum. A damaged one is written anew from the settings
        that are asked for, if those are the ``same``.

        Raises:
            DamagedError: if the file is damaged, or holds no such settings.
        """
        path = self.path / self.document
        with reading(f"cannot read {path}", DamagedError):
            first, _, text = read_regular(path).decode().partition("\n")
        if first.startswith(_CHECKSUM) and first != f"{_CHECKSUM}{checksum(text.encode())}":
            if same is None or first != f"{_CHECKSUM}{checksum(same.to_yaml().encode())}":
                raise DamagedError(
                    f"{path} was changed or is damaged: its checksum is another; go on with the "
                    f"{self.holds} file that the run was begun with"
                )
            self._start(same)
        try:
            return self.read(path)
        except FleetError as error:
            raise DamagedError(
                f"{error}; it holds no {self.holds} that this version can read"
            ) from error

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A directory that holds a run.

        Raises:
            RunError: if it does not.
        """
        run = cls(Path(path))
        if not run.exists():
            raise RunError(f"{run.path} holds no run: it has no {cls.document}")
        return run

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
            if at_work := self._at_work():
                raise RunError(f"{self.path} is not finished: {at_work}")
            raise RunError(f"{self.path} is not finished; go on with it: {self.resume_command}")
        return self.summary


class RunDirectory(Directory[Fleet]):
    """``fleet.yaml``, ``summary.json``, ``report.html``, ``events.jsonl``, ``devices/<name>/``.

    ``cloud/`` and ``edges/<name>/`` hold what these servers need to go on after a stop.
    """

    document = FLEET
    holds = "fleet"

    @staticmethod
    def read(path: Path) -> Fleet:
        """See the base class."""
        return Fleet.from_yaml(path)

    @property
    def _bare(self) -> set[Path]:
        return {*super()._bare, self.identity}

    @property
    def resume_command(self) -> str:
        """See the base class."""
        command = ["run", str(self.path / FLEET), "--out", str(self.path), "--resume"]
        if self.identity.exists():
            command += ["--engine", "flower", "--config", self.on_hosts().config]
        return f"{called()} {shlex.join(command)}"

    @property
    def identity(self) -> Path:
        """The file of a run on many hosts that holds its :class:`Identity`."""
        return self.cloud / "identity.json"

    def on_hosts(self) -> Identity:
        """The identity of a run on many hosts.

        Raises:
            DamagedError: if it is none, or the file is damaged.
        """
        return read_sealed_json(self.identity, Identity)

    @property
    def fleet(self) -> Fleet:
        """The fleet that the run is of; see :meth:`as_written`."""
        return self.as_written()

    @property
    def update(self) -> Path:
        """The file of a run that took over from another one; see ``UpdateSummary``."""
        return self.path / "update.json"

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

    def artifact(self, name: str) -> Path:
        """A device's artifact, unless it was exported to another place."""
        return self.path / ARTIFACTS / name


def is_run(path: Path, document: str) -> bool:
    """True for a folder in which a run has written its settings, or which has a run's other files.

    A file of settings that a user wrote has no checksum; that of an older version's run neither.

    Raises:
        RunError: if the system does not let one look.
    """
    file = path / document
    with reading(path, RunError):
        if not file.is_file():
            return False
        with file.open("rb") as content:
            written = content.read(len(_CHECKSUM)) == _CHECKSUM.encode()
        return written or any((path / name).exists() for name in (SUMMARY, EVENTS))


def _shown(changes: list[str]) -> str:
    left = len(changes) - _MOST_CHANGES
    more = [f"and {left} more"] if left > 0 else []
    return "\n".join([*changes[:_MOST_CHANGES], *more])
