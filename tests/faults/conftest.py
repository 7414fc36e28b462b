"""Runs in processes that were forked from a warm one."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_runs import CHANGES, Faults, outcome_of

from tiny_fleet import tiny


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """The process that runs are forked from, and one undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    fleet = tiny(**CHANGES)
    fleet = fleet.model_copy(update={"clusters": fleet.clusters[:1]})
    (folder / "fleet.yaml").write_text(fleet.to_yaml())
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
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
