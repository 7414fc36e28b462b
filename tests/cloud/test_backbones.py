"""Stages of phase 1: what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.cloud import backbones
from acme_fleet.cloud.backbones import Backbones, Progress
from acme_fleet.cloud.choices import at_depth, limits_of, odds
from acme_fleet.cloud.objectives import candidate_grid, candidate_sizes
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.distillation.elastic import DistillationStep
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.models.backbone.supernet import ElasticClassifier
from tiny_fleet import tiny


@contextmanager
def _stage(name: str) -> Iterator[Progress]:
    yield lambda done, of: None


def _steps(fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[DistillationStep]:
    """Both steps of Eq. 9 as a run takes them; nothing is trained."""
    seen: list[DistillationStep] = []
    monkeypatch.setattr(backbones, "train_reference", lambda task, model, *_: model)
    monkeypatch.setattr(
        backbones, "distill", lambda task, teacher, student, step, *_, **__: seen.append(step)
    )
    world = load_world(fleet, [])
    reference = untrained_reference(fleet, world.public, world.classes)
    Backbones(fleet, world.public, world.classes, folder, _stage, reference).prepare()
    return seen


def test_students_are_drawn_by_what_the_limits_admit(tmp_path: Path, monkeypatch: Any) -> None:
    devices = [{"name": "a", "storage": "60 kB"}, {"name": "b", "storage": "15 kB"}]
    fleet = tiny(clusters=[{"name": d["name"] + "-hub", "devices": [d]} for d in devices])
    wide, deep = _steps(fleet, tmp_path, monkeypatch)
    reference = untrained_reference(fleet, load_world(fleet, []).public, list("0123456789"))
    grid = candidate_grid(fleet.backbone, reference)
    sizes = candidate_sizes(ElasticClassifier(reference), grid, fleet.header)
    expected = odds(grid, sizes, limits_of(fleet))
    assert expected is not None
    assert set(expected.values()) == {0.5, 1.0}  # the 15 kB admit some
    assert deep.odds == expected
    assert wide.odds == at_depth(expected, 2)


def test_limits_that_admit_everything_leave_the_draws_alone(
    tmp_path: Path, monkeypatch: Any
) -> None:
    fleet = tiny(clusters=[{"name": "hub", "devices": [{"name": "a", "storage": "1 MB"}]}])
    assert [step.odds for step in _steps(fleet, tmp_path, monkeypatch)] == [None, None]
