"""A disk that is full or read-only: one error that names the file, and nothing finished is lost."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_resume import StopAt
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import WriteError
from acme_fleet.pipeline import customize
from acme_fleet.runs import atomic as files
from conftest import models_of
from tiny_fleet import SHORT


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_size_limit_ends_the_run_with_the_command_that_goes_on(finished, prepared: Path):
    """At the journal, at a device's state, at a device's model; then the run ends as ever."""
    arguments = ["run", str(prepared / "fleet.yaml"), "--out", str(prepared), "--resume"]
    stopped = []
    for size in (100, 6_000, 24_500):
        if size > 6_000:
            stop = StopAt("cam-2", "round 1")
            with pytest.raises(KeyboardInterrupt):
                customize(finished.fleet, prepared, resume=True, observer=stop)
        with _largest_file(size):
            told = CliRunner().invoke(app, arguments)
        assert told.exit_code == 2, told.output
        (line,) = told.stderr.splitlines()
        refused = re.match(
            rf"error: cannot write {prepared}/(\S+): the file size limit is reached; ", line
        )
        assert refused, line
        stopped.append(refused[1].split("/")[-1])
        assert line.endswith(f"go on: acme {' '.join(arguments)}")
        assert not list(prepared.rglob("*.partial"))
    assert stopped == ["events.jsonl", "assignment.safetensors", "model.safetensors"]
    customize(finished.fleet, prepared, resume=True)
    assert models_of(prepared) == finished.models


_WRITTEN = (
    *("fleet.yaml", "parts.json", "similarity.json", "assignment.safetensors", "secret"),
    *("features.safetensors", "work.safetensors", "cam-1.safetensors", "rounds.json"),
    *("model.safetensors", "report.html", "summary.json"),
)


def test_every_writer_names_its_file(
    tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk becomes read-only at one file after the other; each time the run goes on."""
    changes = {
        **SHORT,
        "personalization.rounds": 2,
        "personalization.privacy": {"importance_noise": 1.0},
        "clusters": [{"name": "north", "devices": [{"name": "cam-1", "storage": "60 kB"}]}],
    }
    fleet, opened, waiting, told = tiny(**changes), os.open, list(_WRITTEN), []

    def read_only(path: Any, flags: int, mode: int = 0o777, **others: Any) -> int:
        name = re.sub(r"^\.(.+)\.\d+-\w+\.partial$", r"\1", Path(path).name)
        if name in waiting:
            waiting.remove(name)
            raise OSError(errno.EROFS, "")
        return opened(path, flags, mode, **others)

    monkeypatch.setattr(files.os, "open", read_only)
    while waiting:
        with pytest.raises(WriteError) as refusal:
            customize(fleet, tmp_path / "run", resume=True)
        told.append(str(refusal.value))
        assert not (tmp_path / "run" / "summary.json").exists()
    found = [
        re.match(rf"cannot write {tmp_path}/run/(\S+): the file system is read", text)
        for text in told
    ]
    assert sorted(match[1].split("/")[-1] for match in found if match) == sorted(_WRITTEN)
    assert all(text.endswith("--resume") for text in told[1:]), "before that there is no run"
    assert customize(fleet, tmp_path / "run", resume=True).devices
