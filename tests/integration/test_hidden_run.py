"""Runs whose candidates differ in hidden size, of an own ViT and of a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import acme_fleet
from acme_fleet.cloud import first_pass
from acme_fleet.cloud.stored import read_quality
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.inspection.explain import explain_device
from acme_fleet.inspection.plan import examine
from acme_fleet.pipeline import customize
from acme_fleet.report.terminal.reasons import print_explanation
from acme_fleet.report.terminal.run import print_candidates, print_summary
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import Summary
from tiny_fleet import SHORT
from tiny_texts import said, text_settings, write_rows


def _check_devices(path: Path, summary: Summary) -> None:
    """Files are as small as they are said to be, and hold the hidden size that was chosen."""
    clusters = {cluster.name: cluster for cluster in summary.clusters}
    for device in summary.devices:
        folder, chosen = path / "devices" / device.name, clusters[device.cluster].variant
        assert (folder / "model.safetensors").stat().st_size == device.size_bytes
        assert device.size_bytes <= device.capacity_bytes
        config = json.loads((folder / "config.json").read_text())["backbone"]
        assert config["hidden_size"] == config["head_dim"] * config["num_attention_heads"] / 2
        assert chosen.hidden == 0.5
        tensors = load_file(folder / "model.safetensors")
        assert any(tensor.shape[-1] == config["hidden_size"] for tensor in tensors.values())
        model = acme_fleet.load(folder)
        assert sum(p.numel() for p in model.parameters()) == device.params


def _without_the_whole(fleet: Fleet) -> Fleet:
    """The fleet with devices for whom the whole reference is a byte too large."""
    plan = examine(fleet)
    whole = int(plan.sizes[plan.grid.variants.index(Variant.whole(max(plan.grid.depths)))])
    clusters = [
        cluster.model_copy(
            update={
                "devices": [
                    device.model_copy(update={"storage": min(device.storage, whole - 1)})
                    for device in cluster.devices
                ]
            }
        )
        for cluster in fleet.clusters
    ]
    return fleet.model_copy(update={"clusters": clusters})


def test_an_own_vit_is_cut_distilled_recovered_and_told(
    tiny: Callable[..., Fleet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learning = {"epochs": 2, "learning_rate": 3e-3}
    fleet = tiny(
        **SHORT,
        **{
            "backbone.hidden": [0.5],
            "backbone.allocation": "global",
            "backbone.distillation": {"training": learning, "recovery": learning},
        },
    )
    fleet = _without_the_whole(fleet)
    print_candidates(fleet, examine(fleet))
    assert "hidden" in capsys.readouterr().out
    summary = customize(fleet, tmp_path / "run")
    _check_devices(tmp_path / "run", summary)
    assert {c.variant.brief for c in summary.clusters[0].candidates} == {
        *("0.5, 1, h 0.5", "0.5, 2, h 0.5", "1, 1, h 0.5", "1, 2, h 0.5", "1, 2")
    }
    assert list((tmp_path / "run" / "cloud").glob("recovered-*-h0.5.safetensors"))
    print_summary(summary)
    assert "h 0.5" in capsys.readouterr().out
    told = explain_device(tmp_path / "run", "cam-1")
    places = range(len(told.cluster.candidates))
    assert any(told.verdict(row).startswith("chosen") for row in places)
    assert Summary.read(tmp_path / "run" / "summary.json") == summary


def test_an_older_summary_has_the_whole_hidden_size(finished: Any) -> None:
    content = finished.summary.model_dump(mode="json")
    for cluster in content["clusters"]:
        for record in (cluster, *cluster["candidates"]):
            assert record.pop("hidden") == 1.0
    assert Summary.model_validate(content) == finished.summary


@pytest.mark.parametrize("labelled", [True, False])
def test_a_checkpoints_features_are_learned_by_cut_backbones(
    labelled: bool, text_checkpoint: Path, tmp_path: Path
) -> None:
    """Vectors of two states in a row, read through maps by the reference's classifier."""
    rows = said(320)
    named = [{key: row[key] for key in ("text", "intent")} for row in rows]
    public = named[:160] if labelled else [{"text": row["text"]} for row in named[:160]]
    data = write_rows(tmp_path / "said.jsonl", named[160:])
    learning = {"epochs": 2, "batch_size": 16, "learning_rate": 0.005}
    changes = {
        "data.public": str(write_rows(tmp_path / "public.jsonl", public)),
        # One step this small is no better on validation data: the checkpoint stays untouched.
        "reference.training": {"epochs": 1, "batch_size": 64, "learning_rate": 1e-12},
        "reference.pooling": "first_mean",
        "backbone.widths": [1.0],
        "backbone.hidden": [0.5],
        "backbone.distillation": {"training": learning, "recovery": learning},
        "search.steps": 1,
        "search.final_samples": 2,
    }
    devices = [{"name": "ear", "storage": "60 kB"}]
    settings = text_settings(data, text_checkpoint, devices, **changes)
    path = tmp_path / "run"
    summary = customize(_without_the_whole(Fleet.parse(settings)), path)
    assert summary.reference.origin == "untouched"
    _check_devices(path, summary)
    for candidate in summary.clusters[0].candidates:
        assert (candidate.accuracy is not None) == labelled
    assert summary.devices[0].accuracy > 0.4  # a third by chance
    model = acme_fleet.load(path / "devices" / "ear")
    assert isinstance(model, nn.Module)
    ids = torch.tensor([[2, 3, 4]])
    assert model(ids, torch.ones_like(ids)).shape == (1, 3)


@pytest.mark.slow
def test_a_large_grid_is_judged_in_two_passes(
    tiny: Callable[..., Fleet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The choice is that of one pass; a second start reads what the first one judged."""
    monkeypatch.setattr(first_pass, "LARGE", 4)
    grid = {"widths": [0.5, 1.0], "hidden": [0.5, 1.0], "depths": [1, 2]}
    short = SHORT | {f"backbone.{name}": value for name, value in grid.items()}
    short["reference.training.epochs"] = 8  # for losses that tell candidates apart
    some, every = (tiny(**short, **{"backbone.first_pass": count}) for count in (40, 0))
    few = customize(some, tmp_path / "0")
    # The other one has the same elastic backbone, and judges all.
    whole = RunDirectory.create(tmp_path / "1", every, resume=False)
    shutil.copytree(tmp_path / "0" / "cloud", whole.cloud)
    (whole.cloud / "candidates.json").unlink()
    full = customize(every, whole.path, resume=True)
    candidates = [c for cluster in few.clusters for c in cluster.candidates]
    assert any(c.estimated for c in candidates)
    assert not any(c.estimated and (c.on_front or c.chosen) for c in candidates)
    assert not any(c.estimated for cluster in full.clusters for c in cluster.candidates)
    assert [c.variant for c in few.clusters] == [c.variant for c in full.clusters]
    print_explanation(explain_device(tmp_path / "0", "cam-1"))
    told = capsys.readouterr().out
    assert "≈" in told
    read = read_quality(tmp_path / "0" / "cloud" / "candidates.json")
    assert read.estimated is not None
    assert read.estimated.sum() == sum(c.estimated for c in few.clusters[0].candidates)
