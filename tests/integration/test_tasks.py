"""A task is one class and one entry: a new one, written here, is learned by a whole fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.backbone import LogitsLoss
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.models.shipped import load_device_model
from acme_fleet.pipeline import customize
from acme_fleet.tasks.base import ABSENT, Reduction, Task
from acme_fleet.tasks.classification import Classification
from acme_fleet.tasks.registry import TASKS
from acme_fleet.training.evaluation import evaluate


class Closeness(Task):
    """Classes in an order: smoothed labels, half a point for a neighbour, and no probe."""

    metric = "closeness"

    def __init__(self) -> None:
        self.reductions: set[str] = set()
        self.imitated = 0

    def loss(self, outputs: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        self.reductions.add(reduction)
        return F.cross_entropy(
            outputs, labels, label_smoothing=0.1, reduction=reduction, ignore_index=ABSENT
        )

    def hits(self, outputs: Tensor, labels: Tensor) -> Tensor:
        distance = (outputs.argmax(dim=1) - labels).abs()
        return (1 - distance / 2).clamp(min=0) * (labels != ABSENT)

    def imitation(self, student: Tensor, teacher: Tensor, kind: LogitsLoss) -> Tensor:
        self.imitated += 1
        return F.smooth_l1_loss(student, teacher)

    def outputs(self, names: Sequence[str]) -> int:
        return len(names)


@pytest.mark.parametrize("at_once", [1, 10])
def test_a_new_task_is_one_class_and_one_entry(
    at_once: int, tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Closeness()
    monkeypatch.setitem(TASKS, "closeness", task)
    for name in ("loss", "hits", "imitation", "outputs", "head", "evaluation", "evaluations"):
        monkeypatch.setattr(Classification, name, lambda *_: pytest.fail("somebody classifies"))
    monkeypatch.setattr(Classification, "probe", None)
    fleet = tiny(task="closeness", devices_at_once=at_once, **{"personalization.rounds": 1})
    summary = customize(fleet, tmp_path / "run")
    assert summary.probe is None  # no regression to compare with
    assert task.imitated
    # importance and evaluations; training; candidates, and many devices together
    assert task.reductions == {"sum", "mean", "none"}
    world = load_world(fleet)
    for device in summary.devices:
        test = world.private[device.name].test
        model = load_device_model(tmp_path / "run/devices" / device.name)
        points = task.hits(model(**test.inputs), test.labels)
        assert device.accuracy == pytest.approx(float(points.mean()), abs=1e-6)
        assert device.test_samples == evaluate(task, model, test).count == len(test)
        told = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), "--device", device.name])
        assert f"{device.name}: closeness {device.accuracy:.4f}, loss " in told.output
    points = [device.accuracy * device.test_samples for device in summary.devices]
    assert any(abs(own - round(own)) > 0.1 for own in points)  # half points are reported
