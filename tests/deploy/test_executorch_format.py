"""Models for ExecuTorch compute there what PyTorch does, by XNNPACK's arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.config.devices import Precision
from acme_fleet.deploy import executorch_format
from acme_fleet.deploy.base import eager
from acme_fleet.deploy.executorch_format import EXECUTORCH, MODEL
from acme_fleet.deploy.export import export, origin_alone
from acme_fleet.errors import FleetError
from acme_fleet_runtime.manifest import read_manifest
from tiny_device import shipped_folder

PlainBackbone = Callable[..., PreTrainedModel]
needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason='no executorch; pip install "acme-fleet[mobile]"'
)


@pytest.mark.slow
@needs_executorch
@pytest.mark.parametrize(
    ("family", "precision", "pooling"),
    [
        ("vit", "float32", "first"),
        ("dinov2", "int8", "first_mean"),
        ("bert", "int8", "mean"),
        ("llama", "float32", "last"),
    ],
)
def test_an_artifact(
    plain_backbone: PlainBackbone,
    tmp_path: Path,
    family: str,
    precision: Precision,
    pooling: Pooling,
):
    folder = shipped_folder(plain_backbone(family, layers=1), precision, pooling, tmp_path / "cam")
    done = export(origin_alone(folder, []), "executorch", tmp_path / "artifact", force=False)
    manifest = read_manifest(done.folder)
    assert manifest.program.name == "executorch"
    assert manifest.verification.largest_difference <= manifest.verification.tolerance
    assert manifest.files[MODEL].size_bytes == (done.folder / MODEL).stat().st_size
    if family == "bert":
        words = subprocess.run(
            [sys.executable, "run.py", "w5 w6 w7"], cwd=done.folder, capture_output=True, check=True
        ).stdout.decode()
        assert words.split()[3] in json.loads((done.folder / "manifest.json").read_text())["labels"]


def test_rounding_with_a_zero_point_is_near_the_models_own(
    plain_backbone: PlainBackbone, tmp_path: Path
):
    folder = shipped_folder(plain_backbone("vit", layers=1), "int8", "first", tmp_path / "cam")
    model = origin_alone(folder, []).model
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    ours, theirs = (run(model)({"pixels": pixels}) for run in (EXECUTORCH.pytorch, eager))
    assert 0 < np.abs(ours - theirs).max() < 0.1 * np.ptp(theirs)


def test_precisions_that_xnnpack_lacks_are_told(
    plain_backbone: PlainBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(executorch_format, "find_spec", lambda _: True)
    folder = shipped_folder(plain_backbone("vit", layers=1), "int4", "first", tmp_path / "cam")
    with pytest.raises(FleetError, match="XNNPACK runs float32 and int8, not int4"):
        export(origin_alone(folder, []), "executorch", tmp_path / "artifact", force=False)
    monkeypatch.setattr(executorch_format, "find_spec", lambda _: None)
    with pytest.raises(FleetError, match=r'pip install "acme-fleet\[mobile\]"'):
        export(origin_alone(folder, []), "executorch", tmp_path / "artifact", force=False)
    assert not (tmp_path / "artifact").exists()
