"""Whole numbers in ONNX Runtime are summed exactly, or there is no answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.deploy.graph import build_graph, export_module
from acme_fleet.deploy.onnx_format import MINIMUM
from acme_fleet.deploy.rounded import Exact
from acme_fleet_runtime.runner import start
from tiny_device import device_model

_OLD = """
import sys
import numpy, onnxruntime
from acme_fleet_runtime.runner import start
content, pixels = open(sys.argv[1], "rb").read(), numpy.load(sys.argv[2])
plain = onnxruntime.InferenceSession(content)
numpy.savez(sys.argv[3], *(s.run(["logits"], {"pixels": pixels})[0] for s in
    (plain, start(content, sys.argv[4], 1))))
"""


@pytest.mark.parametrize("largest", [127, 64])
def test_a_wrong_sum_leaves_no_answer(largest: int) -> None:
    exact = Exact()
    exact.largest.fill_(largest)
    graph = export_module(exact, {"x": torch.zeros(2, 3)}, {"x": (0,)}, ["y"])
    x = np.array([[1.5, -2.0, 0.0]], np.float32)
    (y,) = start(graph.SerializeToString(), MINIMUM, 1).run(None, {"x": x})
    np.testing.assert_array_equal(y, x if largest == 127 else np.full_like(x, np.nan))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64 (qemu-user)")
def test_a_processor_without_vnni(
    plain_backbone: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = device_model(plain_backbone("vit", layers=2), "int8", "first")
    pixels = torch.randint(256, (3, 8, 8, 1), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(pixel_values=(pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).numpy()
    content = build_graph(model, ImagePreprocessing.centred(8, 8, 1))
    graph, given, found = (tmp_path / name for name in ("graph", "given.npy", "found.npz"))
    graph.write_bytes(content)
    np.save(given, pixels.numpy())
    emulated = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", _OLD]
    subprocess.run([*emulated, graph, given, found, MINIMUM], check=True)
    plain, ours = np.load(found).values()
    assert np.isnan(plain).all()
    assert np.abs(ours - expected).max() <= 0.05 * np.ptp(expected, axis=1).mean()
