"""One fleet, the outcome of its undisturbed run, and the means to disturb others."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acme_fleet.runs.summary import Summary
from tiny_fleet import SHORT

CHANGES = {**SHORT, "personalization.rounds": 2, "personalization.mix": "both"}


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

    def check(self, path: Path, *besides: str, fault: str = "") -> None:
        """Go on undisturbed: the outcome is that of a run that nothing ever disturbed.

        Some parts may be left out ``besides``; ``fault`` is told with a difference.
        """
        ended = self.run(path)
        assert ended.code == 0, ended.told
        found, expected = outcome_of(path), self.outcome
        parts = (found.keys() | expected.keys()) - {*besides}
        changed = {
            part: (found.get(part), expected.get(part))
            for part in sorted(parts)
            if found.get(part) != expected.get(part)
        }
        assert not changed, f"{fault}: {changed}"

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
    del summary["reference"]["latency_s"], summary["traffic"]["resent_bytes"]
    parts = ("reference", "clusters", "devices", "traffic", "warnings", "lost")
    return {**sums, **{part: json.dumps(summary[part], sort_keys=True) for part in parts}}
