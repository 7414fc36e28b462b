"""A fleet whose devices hold texts, from a BERT checkpoint to `acme predict`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.inspection.predict import predict_test_data, read_preprocessing
from acme_fleet.models.features import feature_samples
from acme_fleet.models.shipped import load_device_model
from acme_fleet.pipeline import customize
from acme_fleet.report.words import bytes_text, ten_lines_text
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import fit_probe
from acme_fleet.training.evaluation import evaluate
from acme_fleet_runtime.manifest import Reference, read_manifest
from tiny_texts import said, text_settings, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_checkpoint: Path) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("texts")
    rows = [row | {"room": ("kitchen", "cellar")[n % 2]} for n, row in enumerate(said(420))]
    data = write_rows(folder / "said.jsonl", rows)
    devices = [{"name": f"speaker-{number}", "storage": "60 kB"} for number in (1, 2)]
    changes = {
        "data.partition": {"scheme": "natural", "column": "room"},
        "reference.training": {"epochs": 6, "batch_size": 16, "learning_rate": 0.01},
        "backbone.distillation.training.epochs": 3,
        "search.rivals": True,
        "personalization.rounds": 2,
    }
    fleet = Fleet.parse(text_settings(data, text_checkpoint, devices, **changes))
    return folder / "run", customize(fleet, folder / "run")


def test_models_are_small_and_know_more_than_chance(run: tuple[Path, Summary]):
    path, summary = run
    assert len(summary.devices) == 2
    for device in summary.devices:
        assert device.accuracy > 0.6  # a third by chance
        assert device.size_bytes <= 60_000
        assert (
            device.size_bytes
            == (path / "devices" / device.name / "model.safetensors").stat().st_size
        )
    (cluster,) = summary.clusters
    assert {one.name for one in cluster.contenders} >= {"random", "controller", "linear", "cnn"}


def test_the_practitioners_rival_stands_beside_the_method(run: tuple[Path, Summary]):
    path, summary = run
    reference, probe = summary.reference, summary.probe
    assert reference.origin in ("fine-tuned", "untouched")
    assert probe is not None
    assert probe.pooling in ("first", "mean")
    assert probe.size_bytes_int8 < probe.size_bytes
    for device in summary.devices:
        assert device.accuracy_probe is not None
        assert device.accuracy_probe_averaged is not None
    stored = json.loads((path / "summary.json").read_text())
    assert {"accuracy_probe", "accuracy_probe_averaged"} <= stored["devices"][0].keys()
    told = CliRunner().invoke(app, ["explain", str(path), "--device", "speaker-1"])
    rival = f"{ten_lines_text(probe.pooling)}, {bytes_text(probe.size_bytes_int8)}: "
    assert f"{rival}{summary.devices[0].accuracy_probe:.3f}" in " ".join(told.output.split())
    page = (path / "report.html").read_text()
    size = bytes_text(probe.size_bytes_int8).replace(" ", "\u00a0")
    assert f">ten lines</a>, {size}</th>" in page


def test_nothing_ships_below_the_probe_on_validation_data(run: tuple[Path, Summary]):
    """A regression on what the shipped backbone sees, as a device would fit it."""
    path, summary = run
    fleet = RunDirectory.open(path).fleet
    world = load_world(fleet)
    for device in summary.devices:
        model, own = load_device_model(path / "devices" / device.name), world.private[device.name]
        backbone = model.backbone
        features = [feature_samples(backbone, part) for part in (own.train, own.validation)]
        known, unseen = ((s.inputs["pooled"].numpy(), s.labels.numpy()) for s in features)
        regression = fit_probe(known, unseen, len(world.classes))
        shipped = evaluate(CLASSIFICATION, model, own.validation).score
        assert shipped >= regression.accuracy(*unseen)


def test_folder_alone_is_enough(run: tuple[Path, Summary]):
    path, _ = run
    folder = path / "devices" / "speaker-1"
    preprocessing, model = read_preprocessing(folder), load_device_model(folder)
    names = json.loads((folder / "labels.json").read_text())
    with torch.no_grad():
        logits = model(**preprocessing.inputs(["play song", "rain wind weather", "lamp light on"]))
    assert [names[i] for i in logits.argmax(dim=1)] == ["music", "weather", "light"]
    document = json.loads((folder / "preprocessor_config.json").read_text())
    special = document.pop("special_tokens")
    assert special["pad_token"] == "[PAD]"
    assert document.pop("vocabulary") > 5
    assert document == {"kind": "text", "max_tokens": 8, "pad_id": 0}


def test_predict(run: tuple[Path, Summary], tmp_path: Path):
    path, summary = run
    for device in summary.devices:
        result = predict_test_data(path, device.name).evaluation
        assert (result.score, result.count) == (device.accuracy, device.test_samples)
    (tmp_path / "a.txt").write_text("please play a song\n")
    told = CliRunner().invoke(
        app, ["predict", str(path), "--device", "speaker-2", str(tmp_path / "a.txt")]
    )
    assert told.exit_code == 0, told.output
    assert "music" in told.output


@pytest.mark.slow
def test_an_artifact_answers_as_the_run(
    run: tuple[Path, Summary], text_checkpoint: Path, tmp_path: Path
):
    """From the tokenizer to probabilities, with texts of one word and longer ones than are read."""
    path, _ = run
    texts = ["lamp", "turn on the light please", "what is weather " * 6, "play it loud", "?"]
    given = [argument for text in texts for argument in ("--text", text)]
    out = tmp_path / "speaker-1"
    jaxtyping.config.update("jaxtyping_disable", True)  # checks would fix the traced sizes
    told = _run_cli("export", path, "--device", "speaker-1", "--out", out)
    assert told.exit_code == 0, told.output
    ours = _run_cli("predict", out, *given, "--json")
    theirs = _run_cli("predict", path, "--device", "speaker-1", *given, "--json")
    assert ours.exit_code == theirs.exit_code
    for one, other in zip(ours.stdout.splitlines(), theirs.stdout.splitlines(), strict=True):
        found, expected = json.loads(one), json.loads(other)
        assert found.keys() == expected.keys()
        if "class" in expected:
            assert found["class"] == expected["class"]
            assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)
    manifest = read_manifest(out)
    assert manifest.reference == Reference(text_checkpoint.name, None)
    assert "LICENSE-NOTE.txt" in manifest.files
    command = [sys.executable, str(out / "run.py"), texts[1]]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert line.split("  ")[1] == json.loads(ours.stdout.splitlines()[1])["class"]


def _run_cli(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])
