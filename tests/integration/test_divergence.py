"""Training that diverges ends a run with its stage and what to change; a device goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acme_fleet.cloud import objectives
from acme_fleet.cloud.objectives import Quality
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError, QuorumError
from acme_fleet.pipeline import customize
from acme_fleet.report.terminal.run import print_summary
from acme_fleet.runs.summary import Summary

Tiny = Callable[..., Fleet]
_FAR = 1e30


def test_reference_that_diverges_is_told_with_its_epoch(tiny: Tiny, tmp_path: Path) -> None:
    fleet = tiny(**{"reference.training.learning_rate": _FAR})
    words = r"training the reference: .* epoch \d of 10.*lower reference.training.learning_rate"
    with pytest.raises(FleetError, match=words):
        customize(fleet, tmp_path / "run")
    assert not (tmp_path / "run" / "cloud" / "reference.safetensors").exists()


def test_distillation_that_diverges_is_told_with_its_epoch(tiny: Tiny, tmp_path: Path) -> None:
    training = {"epochs": 2, "learning_rate": _FAR}
    fleet = tiny(**{"reference.training.epochs": 1, "backbone.distillation.training": training})
    words = r"distillation: .* of 2.*lower backbone.distillation.training.learning_rate"
    with pytest.raises(FleetError, match=words):
        customize(fleet, tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "stage"),
    [
        ("search.learning_rate", "header search"),
        ("search.fine_tuning.learning_rate", "fine-tuning"),
    ],
)
def test_header_that_diverges_loses_its_edge_server_with_the_reason(
    tiny: Tiny, prepared: Path, setting: str, stage: str
) -> None:
    fleet = tiny(**{"search.fine_tuning.epochs": 2, setting: _FAR})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    for name in ("north", "south"):
        (prepared / "edges" / name / "coarse.safetensors").unlink()
    with pytest.raises(QuorumError, match=f"{stage}.*diverged.*lower {setting}"):
        customize(fleet, prepared, resume=True)


def test_device_that_diverges_ships_its_best_header(tiny: Tiny, prepared: Path) -> None:
    fleet = tiny(**{"personalization.rounds": 1, "personalization.local.learning_rate": _FAR})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    summary = customize(fleet, prepared, resume=True)
    assert len(summary.devices) == 4
    for device in summary.devices:
        shipped = load_file(prepared / "devices" / device.name / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in shipped.values())
        assert torch.isfinite(torch.tensor(device.accuracy_linear))


def test_candidate_without_a_loss_is_left_out_of_a_run_and_named(
    tiny: Tiny, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest one, which was chosen for south; all others go on, also after a stop."""
    stored = prepared / "cloud" / "candidates.json"
    stored.unlink()
    measure = objectives.candidate_quality

    def spoilt(*arguments: Any, **named: Any) -> Quality:
        found = measure(*arguments, **named)
        found.losses[0] = float("nan")
        return found

    monkeypatch.setattr(objectives, "candidate_quality", spoilt)
    fleet = tiny(**{"personalization.rounds": 1})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    summary = customize(fleet, prepared, resume=True)
    (told,) = summary.left_out
    assert "candidate w 0.5, d 1 is left out" in told
    for cluster in summary.clusters:
        assert len(cluster.candidates) == 3
        assert (0.5, 1) not in [(c.width, c.depth) for c in cluster.candidates]
    assert Summary.read(prepared / "summary.json") == summary
    print_summary(summary)
    assert "candidate w 0.5, d 1 is left out" in " ".join(capsys.readouterr().out.split())
    assert "is left out" in (prepared / "report.html").read_text()


def test_no_candidate_with_a_loss_is_told(
    tiny: Tiny, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared / "cloud" / "candidates.json").unlink()
    measure = objectives.candidate_quality

    def spoilt(*arguments: Any, **named: Any) -> Quality:
        found = measure(*arguments, **named)
        found.losses[:] = float("inf")
        return found

    monkeypatch.setattr(objectives, "candidate_quality", spoilt)
    for _ in range(2):  # and again from what stands on disk
        with pytest.raises(FleetError, match="none of the 4 candidates has a finite loss"):
            customize(tiny(), prepared, resume=True)
