"""Many hosts over Flower on this machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

_LONGEST = "test_update_over_flower.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != _LONGEST)  # or the other workers wait for it
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.network)
            if not Path(sys.executable).with_name("flower-superlink").exists():
                item.add_marker(pytest.mark.skip("Flower is not installed"))
            elif shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
                item.add_marker(pytest.mark.skip("nginx is not installed"))
