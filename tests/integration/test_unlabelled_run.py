"""A fleet whose cloud has public texts without labels, from a checkpoint to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.models.backbone.checkpoints import load_backbone
from acme_fleet.models.storage import read_tensors, without_prefix
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from tiny_texts import said, text_settings, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_checkpoint: Path) -> tuple[Path, Summary]:
    folder, rows = tmp_path_factory.mktemp("unlabelled"), said(400)
    write_rows(folder / "said.jsonl", rows[160:])
    write_rows(folder / "public.jsonl", [{"text": row["text"]} for row in rows[:160]])
    path = folder / "fleet.yaml"
    path.write_text(json.dumps(_settings(text_checkpoint)))
    return folder, customize(Fleet.from_yaml(path), folder / "run")


def _settings(checkpoint: Path) -> dict[str, Any]:
    """Paths are relative to the fleet file; the vector is longer than a token's state."""
    devices = [
        {"name": f"speaker-{n}", "storage": size} for n, size in ((1, "21 kB"), (2, "60 kB"))
    ]
    changes = {
        "data.public": "public.jsonl",
        "reference.pooling": "first_mean",
        "backbone.distillation.training.epochs": 4,
        "selection": {"matching": "device"},
    }
    return text_settings("said.jsonl", checkpoint, devices, **changes)


def test_devices_learn_from_their_own_labels(run: tuple[Path, Summary]):
    _, summary = run
    assert len(summary.devices) == 2
    for device in summary.devices:
        assert device.accuracy > 0.6  # a third by chance
        assert device.size_bytes <= device.capacity_bytes
        assert device.accuracy_probe is not None
    small, whole = summary.clusters
    assert small.depth == 1 or small.width < 1
    assert (whole.width, whole.depth) == (1, 2)


def test_the_reference_stays_as_it_was(run: tuple[Path, Summary], text_checkpoint: Path):
    path, summary = run
    assert (summary.reference.origin, summary.reference.pooling) == ("untouched", "first_mean")
    stored = read_tensors(path / "run" / "cloud" / "reference.safetensors")[0]
    assert not (path / "run" / "cloud" / "probe.safetensors").exists()
    assert not stored["head.weight"].any()
    assert stored["head.weight"].shape == (3, 32)
    backbone = without_prefix("backbone", stored)
    for name, tensor in load_backbone(text_checkpoint).state_dict().items():
        assert torch.equal(backbone[name], tensor)


def test_no_accuracy_is_made_up(run: tuple[Path, Summary]):
    path, summary = run
    stored = json.loads((path / "run" / "summary.json").read_text())
    assert stored["reference"]["accuracy"] is None
    for cluster in stored["clusters"]:
        assert {candidate["accuracy"] for candidate in cluster["candidates"]} == {None}
        losses = {(c["width"], c["depth"]): c["loss"] for c in cluster["candidates"]}
        assert losses.pop((1.0, 2)) == 0
        assert all(loss > 0 for loss in losses.values())
    assert Summary.read(path / "run" / "summary.json") == summary


def test_everything_that_tells_of_the_run_does_without(
    run: tuple[Path, Summary], quick: pytest.MonkeyPatch
):
    quick.undo()
    path, _ = run
    (path / "run" / "report.html").unlink()
    place, fleet = str(path / "run"), str(path / "fleet.yaml")
    words = {}
    for name, command in {
        "report": ["report", place],
        "fleet": ["explain", place],
        "device": ["explain", place, "--device", "speaker-1"],
        "test data": ["predict", place, "--device", "speaker-2"],
        "plan": ["check", fleet],
        "summary": ["run", fleet, "--out", place, "--resume"],
    }.items():
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 0, told.output
        words[name] = " ".join(told.output.split())
    assert "The accuracy is not known" in words["fleet"]
    assert "validation data without labels" in words["device"]
    assert "public data: 160 samples" in words["plan"]
    assert "backbones are compared by their features" in words["plan"]
    assert "reference, untouched: " in words["summary"]
    assert "on public test data" not in words["summary"]
    page = (path / "run" / "report.html").read_text()
    assert "feature error on public validation data" in page
    assert "The public data have no labels" in page
    assert "on public test data" not in page
