"""A tiny fleet of two edges with two devices each, over Flower on this machine."""

from __future__ import annotations

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.network)
            if not Path(sys.executable).with_name("flower-superlink").exists():
                item.add_marker(pytest.mark.skip("Flower is not installed"))
            elif shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
                item.add_marker(pytest.mark.skip("nginx is not installed"))


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
