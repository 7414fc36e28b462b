"""`acme reference`: a checkpoint fine-tuned once, kept, and used by runs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.cloud.fine_tuned import RECORD
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.models.fitted import CLASSIFIER
from acme_fleet.models.storage import read_tensors, write_tensors
from acme_fleet.pipeline import customize
from event_records import event_records
from tiny_texts import SAID


def _told(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def _first_word_counts(count: int) -> list[dict[str, str]]:
    """Texts whose first word alone tells the intent: a regression on random features fails."""
    draw, words = random.Random(0), [word for of in SAID.values() for word in of]
    rows = []
    for number in range(count):
        intent = sorted(SAID)[number % 3]
        text = " ".join([draw.choice(SAID[intent]), *draw.choices(words, k=4)])
        rows.append({"text": text, "intent": intent})
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, text_checkpoint: Path) -> tuple[Path, Path, str]:
    """A fleet file, the reference that was made for it, and what the command said."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "said.jsonl").write_text("\n".join(map(json.dumps, _first_word_counts(400))))
    settings: dict[str, Any] = {
        "compute": "float32",
        "data": {
            "source": "text",
            "train": str(folder / "said.jsonl"),
            "label_column": "intent",
            "max_tokens": 8,
            "partition": {"scheme": "iid"},
        },
        "reference": {
            "checkpoint": str(text_checkpoint),
            "pooling": "first",
            "training": {"epochs": 12, "batch_size": 16, "learning_rate": 0.01},
        },
        "backbone": {
            "widths": [0.5],
            "depths": [1, 2],
            "importance_samples": 32,
            "distillation": {"training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.005}},
        },
        "header": {"blocks": 1, "channels": 6},
        "search": {"steps": 1, "children_per_step": 1, "final_samples": 1, "rivals": False},
        "personalization": {"rounds": 1, "local": {"epochs": 1, "batch_size": 32}},
        "clusters": [
            {"name": "home", "devices": [{"name": f"s-{n}", "storage": "60 kB"} for n in (1, 2)]}
        ],
    }
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file, folder / "kept", _told("reference", file, "--out", folder / "kept")


def test_the_folder_is_an_ordinary_checkpoint(made: Any, text_checkpoint: Path) -> None:
    _, kept, told = made
    record = json.loads((kept / RECORD).read_text())["result"]
    assert record["origin"] == "fine-tuned"
    assert f"test accuracy {record['accuracy']:.4f} on {record['test_samples']}" in told
    assert f"untouched checkpoint) have {record['accuracy_untouched']:.4f}" in told
    assert "reference: {checkpoint: " in told
    before, after = (AutoModel.from_pretrained(path) for path in (text_checkpoint, kept))
    assert type(before) is type(after)
    states = [model.state_dict() for model in (before, after)]
    assert states[0].keys() == states[1].keys()
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
    texts = ["turn the light on", "what rain"]
    tokens = [AutoTokenizer.from_pretrained(path)(texts) for path in (text_checkpoint, kept)]
    assert tokens[0]["input_ids"] == tokens[1]["input_ids"]
    assert json.loads((kept / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]
    assert not (kept / ".work").exists()


def test_a_finished_folder_is_kept_and_no_other_settings_take_it(made: Any, tmp_path: Path) -> None:
    file, kept, told = made
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert _told("reference", file, "--out", kept)[-200:] == told[-200:]
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    refused = _told("reference", file, "--out", kept, "--seed", 1, code=2)
    assert "is of other settings (seed: 0 there, 1 here)" in refused
    (tmp_path / "mine.txt").write_text("something else")
    assert "not an empty directory" in _told("reference", file, "--out", tmp_path, code=2)


def _with_checkpoint(file: Path, checkpoint: Path, **changes: Any) -> Fleet:
    settings = yaml.safe_load(file.read_text())
    settings["reference"]["checkpoint"] = str(checkpoint)
    for key, value in changes.items():
        settings["data"][key] = value
    return Fleet.parse(settings)


def _stages_of_the_cloud(run: Path) -> set[Any]:
    events = event_records(run / "events.jsonl")
    return {event.get("stage") for event in events if event.get("actor") == "cloud"}


def test_a_run_takes_it_without_training_it_again(made: Any, tmp_path: Path) -> None:
    file, kept, _ = made
    summary = customize(_with_checkpoint(file, kept), tmp_path / "run")
    record = json.loads((kept / RECORD).read_text())["result"]
    assert summary.reference.origin == "fine-tuned"
    assert summary.reference.pooling == record["pooling"] == "first"
    assert summary.reference.accuracy == record["accuracy"]
    stages = {event.get("stage") for event in event_records(tmp_path / "run" / "events.jsonl")}
    assert "reordered" in stages
    cloud = [
        e for e in event_records(tmp_path / "run" / "events.jsonl") if e.get("actor") == "cloud"
    ]
    assert "reference" not in {event.get("stage") for event in cloud}
    assert "probe" not in {event.get("stage") for event in cloud}


def test_of_other_classes_it_is_a_checkpoint_like_any_other(made: Any, tmp_path: Path) -> None:
    file, kept, _ = made
    rows = [row | {"intent": row["intent"].upper()} for row in _first_word_counts(300)]
    (tmp_path / "loud.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fleet = _with_checkpoint(file, kept, train=str(tmp_path / "loud.jsonl"))
    customize(fleet, tmp_path / "run")
    assert "reference" in _stages_of_the_cloud(tmp_path / "run")


@pytest.mark.parametrize("fault", ["damaged", "shape"])
def test_a_bad_classifier_is_refused(made: Any, fault: str, tmp_path: Path) -> None:
    file, kept, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(kept, copy)
    path = copy / CLASSIFIER
    if fault == "damaged":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        words = "make it again with `acme reference`"
    else:
        tensors, about = read_tensors(path)
        write_tensors(path, {**tensors, "weight": tensors["weight"][:, :-1]}, about)
        words = "its tensors are"
    with pytest.raises(FleetError, match=words):
        customize(_with_checkpoint(file, copy), tmp_path / "run")


def test_without_a_checkpoint_there_is_nothing_to_tune(tmp_path: Path) -> None:
    _told("init", tmp_path / "fleet.yaml")
    told = _told("reference", tmp_path / "fleet.yaml", "--out", tmp_path / "kept", code=2)
    assert "reference.checkpoint: there is none to fine-tune" in told
    assert "acme pretrain" in told
    assert not (tmp_path / "kept").exists()
