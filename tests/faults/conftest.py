"""One fleet, the outcome of its undisturbed run, and the means to disturb others."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.runs.summary import Summary
from tiny_fleet import SHORT, tiny

_HERE = Path(__file__).parent
_CHANGES = {**SHORT, "personalization.rounds": 2, "personalization.mix": "both"}


@dataclass(frozen=True)
class Ended:
    """The end of a run: its exit code, negative if it was killed, and all that it said."""

    code: int
    cpu_s: float
    told: str


@dataclass
class Faults:
    """Runs of one fleet in processes that can be killed.

    Attributes:
        fleet: its file.
        outcome: of a run that nothing disturbs, see :func:`outcome_of`.
        steps, cpu_s: that such a run takes.
    """

    fleet: Path
    folder: Path
    process: subprocess.Popen[str]
    outcome: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    cpu_s: float = 0.0

    def run(self, path: Path, **fault: Any) -> Ended:
        """Begin a run, or go on with it, under a fault: see ``zygote.py``."""
        told = self.folder / "told"
        job = {"fleet": str(self.fleet), "run": str(path), "told": str(told), **fault}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return Ended(answer["code"], answer["cpu_s"], told.read_text(errors="replace"))

    def check(self, path: Path) -> None:
        """Go on undisturbed: the outcome is that of a run that nothing ever disturbed."""
        ended = self.run(path)
        assert ended.code == 0, ended.told
        assert outcome_of(path) == self.outcome

    def stopped(self, path: Path, share: float) -> Path:
        """A run that was killed after this share of its steps."""
        assert self.run(path, kill_at=int(share * self.steps)).code < 0
        return path


def outcome_of(path: Path) -> dict[str, str]:
    """SHA-256 of every file that ships, and of the summary without measured times and bytes that
    were sent again.
    """
    files = [
        file
        for file in sorted(path.glob("devices/*/*"))
        if file.is_file() and file.name != "events.jsonl"
    ]
    sums = {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    summary = Summary.read(path / "summary.json").model_dump(mode="json")
    for device in summary["devices"]:
        del device["latency_s"]
    del summary["traffic"]["resent_bytes"]
    parts = ("reference", "clusters", "devices", "traffic", "warnings", "lost")
    return {**sums, **{part: json.dumps(summary[part], sort_keys=True) for part in parts}}


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """The process that runs are forked from, and one undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    fleet = tiny(**_CHANGES)
    fleet = fleet.model_copy(update={"clusters": fleet.clusters[:1]})
    (folder / "fleet.yaml").write_text(fleet.to_yaml())
    with subprocess.Popen(
        [sys.executable, str(_HERE / "zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        found = Faults(folder / "fleet.yaml", folder, process)
        ended = found.run(folder / "undisturbed")
        assert ended.code == 0, ended.told
        found.outcome = outcome_of(folder / "undisturbed")
        found.steps = json.loads(ended.told.splitlines()[-1])["steps"]
        found.cpu_s = ended.cpu_s
        yield found
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies of a stopped run."""

    def copy(path: Path) -> Path:
        return Path(shutil.copytree(path, tmp_path / f"copy-{random.random()}"))

    return copy
