"""A run whose candidates differ in precision: what is chosen, sent, shipped and loaded is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import check_feasible, examine
from acme_fleet.models.shipped import load_device_model
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_research.frame.generated import tiny_bert
from tiny_texts import SAID, said, text_settings, write_rows

RUNTIMES = {"new": ["int4", "int8", "float32"], "old": ["float32"], "plain": ["float16"]}


def _settings(folder: Path) -> dict[str, Any]:
    letters = [chr(ord("a") + i) for i in range(26)]
    words = sorted({word for own in SAID.values() for word in own})
    unsaid = [f"unsaid{one}{other}" for one in letters[:6] for other in letters[:10]]
    checkpoint = tiny_bert(
        folder / "bert", [*words, *unsaid, *letters, *(f"##{letter}" for letter in letters)]
    )
    rows = [row | {"room": str(n % 3)} for n, row in enumerate(said(300))]
    devices = [
        {"name": name, "storage": "90 kB", "precisions": runtime}
        for name, runtime in RUNTIMES.items()
    ]
    changes = {
        "data.partition": {"scheme": "natural", "column": "room"},
        "reference.training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        "backbone.widths": [0.5],
        "backbone.precisions": ["float32", "int4", "int8", "float16"],
        "backbone.vocabulary": 90,
        "selection": {"matching": "device", "performance_window": 9},
        "personalization.local.epochs": 1,
    }
    data = write_rows(folder / "said.jsonl", rows)
    return text_settings(data, checkpoint, devices, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("precisions")
    return folder / "run", customize(Fleet.parse(_settings(folder)), folder / "run")


def test_each_device_gets_what_its_runtime_executes(run: tuple[Path, Summary]) -> None:
    path, summary = run
    chosen = {
        name: group.variant.precision for group in summary.clusters for name in group.device_names
    }
    assert chosen["old"] == "float32"
    assert chosen["plain"] == "float16"
    assert chosen["new"] in ("int4", "int8")  # the loss may be anything here
    for name, precision in chosen.items():
        folder = path / "devices" / name
        kinds = {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
        whole = {"int4": torch.uint8, "int8": torch.int8, "float16": torch.float16}
        assert whole.get(precision, torch.float32) in kinds
        assert json.loads((folder / "config.json").read_text())["backbone"]["precision"] in (
            precision,
        )


def test_size_that_was_chosen_is_the_size_that_ships(run: tuple[Path, Summary]) -> None:
    """With the smallest header; the one that was searched is larger."""
    path, summary = run
    for group in summary.clusters:
        sizes = {candidate.variant: candidate.size_bytes for candidate in group.candidates}
        for name in group.device_names:
            shipped = (path / "devices" / name / "model.safetensors").stat().st_size
            assert sizes[group.variant] <= shipped <= 90_000
            assert shipped == next(d.size_bytes for d in summary.devices if d.name == name)


def test_accuracy_is_the_artefacts(run: tuple[Path, Summary]) -> None:
    """The model that is loaded from the folder, on the texts as its own tokenizer reads them."""
    path, summary = run
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    for device in summary.devices:
        folder, test = path / "devices" / device.name, world.private[device.name].test
        model = load_device_model(folder)
        assert evaluate(CLASSIFICATION, model, test).score == device.accuracy
        other = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            torch.testing.assert_close(other(**test.inputs).logits, model(**test.inputs))
        told = CliRunner().invoke(app, ["predict", str(folder), "--text", "play song", "--json"])
        assert told.exit_code == 0, told.output


def test_folder_that_is_saved_again_is_the_same(run: tuple[Path, Summary], tmp_path: Path) -> None:
    path, _ = run
    for name in RUNTIMES:
        folder = path / "devices" / name
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / name)
        first, again = (
            load_file(place / "model.safetensors") for place in (folder, tmp_path / name)
        )
        assert first.keys() == again.keys()
        assert all(torch.equal(first[tensor], again[tensor]) for tensor in first)


def test_whole_reference_stands_among_the_candidates_at_every_precision(
    run: tuple[Path, Summary],
) -> None:
    _, summary = run
    for group in summary.clusters:
        wholes = [c for c in group.candidates if c.width == 1 and c.depth == 2]
        assert {c.precision for c in wholes} == {"int4", "int8", "float16", "float32"}
        by_precision = {c.precision: c for c in wholes}
        assert by_precision["int4"].size_bytes < by_precision["int8"].size_bytes
        assert by_precision["int8"].size_bytes < by_precision["float16"].size_bytes
        near = by_precision["float16"].loss - by_precision["float32"].loss
        assert abs(near) < abs(by_precision["int4"].loss - by_precision["float32"].loss)


def test_reports_say_the_precision(run: tuple[Path, Summary]) -> None:
    path, _ = run
    assert "<th>precision</th>" in (path / "report.html").read_text()
    told = CliRunner().invoke(app, ["explain", str(path), "--device", "old"])
    assert told.exit_code == 0, told.output
    assert "not executed in int8" in " ".join(told.output.split())


def test_vocabulary_ships_with_its_tokenizer(run: tuple[Path, Summary]) -> None:
    path, _ = run
    for name in RUNTIMES:
        tokenizer = json.loads((path / "devices" / name / "tokenizer.json").read_text())
        assert len(tokenizer["model"]["vocab"]) == 90
        words = load_file(path / "devices" / name / "model.safetensors")
        (table,) = (
            tensor for key, tensor in words.items() if key.endswith("word_embeddings.weight")
        )
        assert len(table) == 90


def test_the_plan_tells_what_fits_whom(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    fleet = Fleet.parse(settings)
    plan = examine(fleet)
    check_feasible(fleet, plan)
    assert len(plan.grid) == 3 * 4
    settings["selection"]["matching"] = "cluster"
    fleet = Fleet.parse(settings)
    words = "'home': no candidate has a precision that its devices execute.*none in common"
    with pytest.raises(FleetError, match=words):
        check_feasible(fleet, plan)
    settings["clusters"][0]["devices"] = [
        {"name": "tiny", "storage": "2 kB", "precisions": ["int8"]}
    ]
    fleet = Fleet.parse(settings)
    with pytest.raises(
        FleetError, match=r"the smallest candidate is w 0.5, d 1, int8 with .* bytes"
    ):
        check_feasible(fleet, plan)


def test_backbones_are_trained_in_float32_alone(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    settings["search"]["backbone_learning_rate"] = 0.001
    with pytest.raises(FleetError, match="trains backbones, which is done in float32 alone"):
        Fleet.parse(settings)
    settings["clusters"][0]["devices"][0]["precisions"] = ["int3"]
    with pytest.raises(FleetError, match="int3"):
        Fleet.parse(settings)
