"""A tiny fleet of two edges with two devices each, over Flower on this machine."""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import acme_fleet
from acme_fleet.fleet import Fleet
from acme_fleet.report.summary import Summary

_TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"partition": {"scheme": "pathological", "classes_per_device": 5}},
    "reference": {
        "model": {"hidden_size": 16, "layers": 2, "heads": 2, "neurons": 32},
        "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.01},
    },
    "backbone": {
        "widths": [0.5, 1.0],
        "depths": [1, 2],
        "importance_samples": 64,
        "distillation": {"training": {"epochs": 1, "learning_rate": 0.002}},
    },
    "header": {"blocks": 1, "channels": 6},
    "search": {"steps": 3, "children_per_step": 2, "rivals": False, "fine_tuning": {"epochs": 2}},
    "personalization": {
        "rounds": 2,
        "mix": "both",
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.network)
            if not Path(sys.executable).with_name("flower-superlink").exists():
                item.add_marker(pytest.mark.skip("Flower is not installed"))
            elif shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
                item.add_marker(pytest.mark.skip("nginx is not installed"))


def tiny(**search: Any) -> Fleet:
    content = copy.deepcopy(_TINY)
    content["search"] |= search
    return Fleet.parse(content)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for sockets; kept where a test failed is not needed."""
    folder = Path(tempfile.mkdtemp(prefix="acme-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def embedded(tmp_path: Path) -> Any:
    """``embedded(fleet)``: the same fleet, all in this process; run directory and summary."""

    def run(fleet: Fleet) -> tuple[Path, Summary]:
        path = tmp_path / "embedded"
        return path, acme_fleet.customize(fleet, path)

    return run
