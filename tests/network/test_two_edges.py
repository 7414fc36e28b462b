"""The example of many hosts, as a user runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acme_fleet.runs.summary import Summary
from acme_research.frame.loopback import free_ports, short_folder


@pytest.mark.timeout(900)
def test_two_edges_on_one_machine():
    with short_folder() as clone:
        shutil.copytree(Path(__file__).parents[2] / "examples", clone / "examples")
        subprocess.run([sys.executable, "examples/made.py"], cwd=clone, check=True)
        port = max(10_000, free_ports(1)[0] - 6)
        example = [sys.executable, "examples/two_edges.py", "--port", str(port)]
        said = subprocess.run(example, cwd=clone, check=True, stdout=subprocess.PIPE, text=True)
        summary = Summary.read(clone / "runs/two-edges/run/summary.json")
        assert [len(cluster.device_names) for cluster in summary.clusters] == [2, 2]
        assert not any((clone / "runs/two-edges/run/devices").glob("*"))
        assert "weather" in said.stdout
