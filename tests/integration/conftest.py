"""One tiny fleet, seconds to run, and the same run for all who only look at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import acme_fleet
from acme_fleet.fleet import Fleet
from acme_fleet.journal import read_events
from acme_fleet.report.summary import Summary
from tiny_fleet import tiny


@dataclass(frozen=True)
class Run:
    """A finished run."""

    fleet: Fleet
    path: Path
    summary: Summary

    @property
    def models(self) -> dict[str, bytes]:
        """Each device's model file."""
        return models_of(self.path)


def models_of(path: Path) -> dict[str, bytes]:
    return {
        file.parent.name: file.read_bytes()
        for file in sorted(path.glob("devices/*/model.safetensors"))
    }


@pytest.fixture(scope="session", name="tiny")
def _tiny() -> Callable[..., Fleet]:
    """See :func:`tiny_fleet.tiny`."""
    return tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Fleet]) -> Run:
    """The tiny fleet's run from beginning to end. Not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    fleet = tiny()
    return Run(fleet, path, acme_fleet.customize(fleet, path))


def _is_early(event: dict[str, Any]) -> bool:
    return event.get("actor") == "cloud" or event.get("stage") in ("header search", "header rivals")


@pytest.fixture
def prepared(finished: Run, tmp_path: Path) -> Path:
    """A run that was stopped after phases 1 and 2-1: no device has got a model yet."""
    path = tmp_path / "prepared"
    path.mkdir()
    shutil.copy(finished.path / "fleet.yaml", path)
    done = [event for event in read_events(finished.path / "events.jsonl") if _is_early(event)]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in done))
    shutil.copytree(finished.path / "cloud", path / "cloud")
    for edge in finished.path.glob("edges/*"):
        (path / "edges" / edge.name).mkdir(parents=True)
        for name in ("coarse.safetensors", "contenders.json"):
            shutil.copy(edge / name, path / "edges" / edge.name)
    return path
