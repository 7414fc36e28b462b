"""Measurements and notes beside the protocol: for the report, and for who watches a run."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import World, distribute
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.models.shipped import load_device_model
from acme_fleet.models.storage import read_tensors
from acme_fleet.runs.directory import CHOICES, PROGRESS, RunDirectory
from acme_fleet.runs.events import VALIDATION, FigureEvent
from acme_fleet.runs.journal import read_events
from acme_fleet.runs.sealed import read_sealed_json


@pytest.fixture(scope="module")
def world(finished) -> World:
    return distribute(finished.fleet, load_source(finished.fleet.data))


@torch.no_grad()
def test_classes_and_confusions_are_those_of_the_shipped_model(finished, world: World):
    run = RunDirectory(finished.path)
    for device in finished.summary.devices:
        own = world.private[device.name]
        given = load_device_model(run.device(device.name))(**own.test.inputs).argmax(dim=1)
        for label, name in enumerate(world.classes):
            asked = own.test.labels == label
            train = int((own.train.labels == label).sum())
            if not train and not asked.any():
                assert name not in device.classes
                continue
            assert device.classes[name].train == train
            for answer, other in enumerate(world.classes):
                expected = int((given[asked] == answer).sum())
                assert device.classes[name].answers.get(other, 0) == expected
        assert device.train_samples == len(own.train)
        assert device.validation_samples == len(own.validation)


def test_answers_stay_in_the_devices_private_state(finished):
    for device in finished.summary.devices:
        path = finished.path / "devices" / device.name / "state" / "work.safetensors"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@torch.no_grad()
def test_the_whole_reference_is_tested_on_the_same_samples(finished, world: World):
    reference = untrained_reference(finished.fleet, world.public, world.classes)
    tensors, _ = read_tensors(finished.path / "cloud" / "reference.safetensors")
    reference.load_state_dict(tensors)
    for device in finished.summary.devices:
        own = world.private[device.name]
        known = own.train.labels.unique()
        scores = reference.eval()(**own.test.inputs)[:, known]
        right = known[scores.argmax(dim=1)] == own.test.labels
        assert device.accuracy_reference == pytest.approx(float(right.float().mean()))
    assert finished.summary.reference.latency_s > 0


def test_who_watches_sees_choices_rewards_and_scores(finished):
    fleet, summary = finished.fleet, finished.summary
    told = read_sealed_json(finished.path / CHOICES, list[dict[str, Any]])
    assert [each["candidates"] for each in told] == [
        [candidate.model_dump(mode="json") for candidate in cluster.candidates]
        for cluster in summary.clusters
    ]
    events = read_events(finished.path / "events.jsonl")
    figures = [event for event in events if isinstance(event, FigureEvent)]
    for cluster in summary.clusters:
        rewards = [f for f in figures if f.actor == cluster.name and f.tier == "edge"]
        assert [f.step for f in rewards] == list(range(1, fleet.search.steps + 1))
        assert {f.figure for f in rewards} == {"header search"}
        assert all(0 <= f.value <= 1 for f in rewards)
    for device in summary.devices:
        scores = [f for f in figures if f.actor == device.name]
        assert {f.figure for f in scores} == {VALIDATION}
        assert scores[-1].step == fleet.personalization.rounds + 1  # the last fine-tuning
        assert [f.value for f in scores] == sorted(f.value for f in scores)  # the best so far
    assert b'"finished"' in (finished.path / PROGRESS).read_bytes()


def test_examples_are_in_the_report_when_they_are_asked_for(finished, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    assert CliRunner().invoke(app, ["report", str(copy)]).exit_code == 0
    assert "Some of its test samples" not in (copy / "report.html").read_text()
    told = CliRunner().invoke(app, ["report", str(copy), "--with-examples"])
    assert told.exit_code == 0, told.output
    page = (copy / "report.html").read_text()
    assert page.count("Some of its test samples") == len(finished.summary.devices)
    assert page.count('alt="A test image of class') == 8 * len(finished.summary.devices)
    wrong = [d for d in finished.summary.devices if d.accuracy < 1]
    assert page.count("</span>, is ") >= len(wrong)
