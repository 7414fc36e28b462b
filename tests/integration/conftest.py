"""One tiny fleet, seconds to run, and the same run for all who only look at it."""

from __future__ import annotations

import copy
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

_TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "edge_quorum": 1.0,
    "data": {"partition": {"scheme": "pathological", "classes_per_device": 5}},
    "reference": {
        "model": {"hidden_size": 16, "layers": 2, "heads": 2, "neurons": 32},
        "training": {"epochs": 10, "batch_size": 32, "learning_rate": 0.01},
    },
    "backbone": {
        "widths": [0.5, 1.0],
        "depths": [1, 2],
        "importance_samples": 64,
        "distillation": {"training": {"epochs": 3, "learning_rate": 0.002}},
    },
    "header": {"blocks": 1, "channels": 6},
    "search": {
        "steps": 3,
        "children_per_step": 2,
        "weight_updates_per_step": 1,
        "final_samples": 3,
        "fine_tuning": {"epochs": 2},
    },
    "personalization": {
        "rounds": 3,
        "local": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        "prune_share": 0.2,
        "feature_samples": 12,
    },
    "clusters": [
        {
            "name": "north",
            "devices": [
                {"name": "cam-1", "storage": "60 kB"},
                {"name": "cam-2", "storage": "70 kB"},
            ],
        },
        {
            "name": "south",
            "devices": [
                {"name": "badge-1", "storage": "20 kB", "energy": {"power_w": 0.5}},
                {"name": "badge-2", "storage": "30 kB", "energy": {"power_w": 0.6}},
            ],
        },
    ],
}


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


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Fleet]:
    """``tiny(**{"personalization.rounds": 2})``: the tiny fleet with entries changed."""

    def make(**changes: Any) -> Fleet:
        content = copy.deepcopy(_TINY)
        for path, value in changes.items():
            *parents, last = path.split(".")
            place: Any = content
            for part in parents:
                place = place[part]
            place[last] = value
        return Fleet.parse(content)

    return make


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
