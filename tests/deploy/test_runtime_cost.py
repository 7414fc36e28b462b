"""``acme profile --runtime onnxruntime``: what is timed is what an artifact computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedModel
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.devices import Precision
from acme_fleet.deploy.runtime_cost import ONNX_RUNTIME
from tiny_device import device_model, shipped_folder

PlainBackbone = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_model_answers_as_in_pytorch(plain_backbone: PlainBackbone, precision: Precision):
    model = device_model(plain_backbone("vit", layers=1), precision, "first")
    pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (answer,) = cast(
        "list[np.ndarray]", ONNX_RUNTIME.load(model, {"pixel_values": pixels}, precision)()
    )
    with torch.no_grad():
        expected = model(pixel_values=pixels).numpy()
    assert np.abs(answer - expected).max() <= 0.05 * np.ptp(expected)


def test_a_backbone_alone_too(plain_backbone: PlainBackbone):
    model = plain_backbone("bert", layers=1)
    ids = torch.arange(2, 8)[None]
    (answer,) = cast("list[np.ndarray]", ONNX_RUNTIME.load(model, {"input_ids": ids}, "float32")())
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state.numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-4)


@pytest.mark.slow
def test_the_file_has_a_share_for_each_precision(plain_backbone: PlainBackbone, tmp_path: Path):
    folder = shipped_folder(plain_backbone("vit", layers=2), "int8", "first", tmp_path / "cam")
    board = tmp_path / "board.yaml"
    command = ["profile", str(folder), "--runtime", "onnxruntime", "--largest-batch", "2"]
    done = CliRunner().invoke(app, [*command, "--runs", "5"])
    assert done.exit_code == 0, done.output
    assert "as a share of that in float32: float16 " in done.output
    done = CliRunner().invoke(app, [*command, "--device-file", str(board)])
    if done.exit_code == 0:  # else the machine was too busy for a fit, and that is told
        assert {"float16", "int8", "int4"} <= yaml.safe_load(board.read_text())["energy"].keys()
    else:
        assert "nothing was written" in done.output


def test_unknown_runtimes_and_gpus_are_refused(plain_backbone: PlainBackbone, tmp_path: Path):
    folder = shipped_folder(plain_backbone("vit", layers=1), "int8", "first", tmp_path / "cam")
    done = CliRunner().invoke(app, ["profile", str(folder), "--runtime", "tflite"])
    assert done.exit_code != 0
    assert "onnxruntime" in done.output
