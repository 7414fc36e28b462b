"""Data that a reference has learned are known again by their bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.learned import digests, learned_before
from acme_fleet.training.language_pretraining import DECODERS, Decoder
from tiny_language import written_rows


def _fleet(checkpoint: Path, **data: Any) -> Fleet:
    device = {"name": "cam-1", "storage": "1 MB"}
    own = {"data": str(data.pop("own"))} if "own" in data else {}
    task = "generation" if data["source"] == "language" else "classification"
    content = {"task": task, "data": data, "reference": {"checkpoint": str(checkpoint)}}
    return Fleet.parse({**content, "devices": [{**device, **own}]}, "fleet", Path())


def _pretrained(data: Path, out: Path, *options: str) -> Path:
    words = ["pretrain", "--data", str(data), "--epochs", "1", "--out", str(out), *options]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    return out


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(DECODERS, "tiny", Decoder(16, 1, 2, 1, 16, 280))
    rows = written_rows(tmp_path / "rows.jsonl", 60, answers=False)
    others = written_rows(tmp_path / "others.jsonl", 61, answers=False)
    model = _pretrained(rows, tmp_path / "model", "--model", "tiny")
    rows.rename(tmp_path / "renamed.jsonl")
    kind = {"source": "language", "train": str(tmp_path / "renamed.jsonl")}
    assert learned_before(_fleet(model, **kind)) == [f"data.train ({tmp_path}/renamed.jsonl)"]
    kind["train"] = str(others)
    assert learned_before(_fleet(model, **kind)) == []
    assert learned_before(_fleet(model, **kind, own=tmp_path / "renamed.jsonl")) == [
        f"data of cam-1 ({tmp_path}/renamed.jsonl)"
    ]
    assert learned_before(_fleet(model, **kind, own=tmp_path / "elsewhere.jsonl")) == []
    record = model / "pretraining.json"
    older = {k: v for k, v in json.loads(record.read_text()).items() if k != "data_sha256"}
    record.write_text(json.dumps(older))
    assert learned_before(_fleet(model, **kind, own=tmp_path / "renamed.jsonl")) == []


def test_folders_of_images(tmp_path: Path):
    for number in range(60):
        file = tmp_path / f"photos/train/{number % 2}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 4 * number).save(file)
    model = _pretrained(tmp_path / "photos", tmp_path / "model", "--model", "vit-micro")
    for folder in ("photos", "photos/train"):
        fleet = _fleet(model, source="images", train=str(tmp_path / folder))
        assert learned_before(fleet) == [f"data.train ({tmp_path / folder})"]
    before = digests([tmp_path / "photos"])
    file.rename(file.with_name("other.png"))
    assert digests([tmp_path / "photos"]) != before
