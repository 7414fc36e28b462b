"""The bigger examples, run as their docstrings say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acme_fleet.report.summary import Summary

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ACME_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not (DATA / "cifar100").exists(), reason=f"no CIFAR-100 in {DATA}; set ACME_DATA"
)
def test_cifar20(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "examples/cifar20.py", str(DATA / "cifar100"), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    summary = Summary.read(out / "summary.json")
    assert len(summary.devices) == 10
    assert summary.traffic.upload_ratio < 0.06
    for device in summary.devices:
        weights = out / "devices" / device.name / "model.safetensors"
        assert weights.stat().st_size == device.size_bytes <= device.capacity_bytes
