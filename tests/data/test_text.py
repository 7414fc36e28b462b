"""Texts: what a file may hold, and tokens as the checkpoint's own tokenizer makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from acme_fleet.config.data import Data, Natural
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import load_world
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.errors import FleetError

TEXTS = ["turn the light on", "what is the weather", "sing", "turn it off now please"]


def lines(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def rows(count: int = 12) -> list[object]:
    """Two intents, three rooms."""
    return [
        {"text": TEXTS[i % 4], "intent": ("light", "weather")[i % 2], "room": f"room{i % 3}"}
        for i in range(count)
    ]


def data(path: Path, **changes: object) -> Data:
    settings = {"source": "text", "train": path, "label_column": "intent", "max_tokens": 8}
    return Data.model_validate({**settings, **changes})


def test_tokens_are_those_of_the_checkpoints_tokenizer(text_checkpoint: Path):
    ours = TextPreprocessing.of_checkpoint(text_checkpoint, 7).inputs(TEXTS)
    theirs = AutoTokenizer.from_pretrained(text_checkpoint)(
        TEXTS, padding="max_length", truncation=True, max_length=7, return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].shape == (4, 7)
    assert ours["attention_mask"].sum(dim=1).tolist() == [6, 6, 3, 7]


def test_it_is_what_it_was_after_json(text_checkpoint: Path):
    one = TextPreprocessing.of_checkpoint(text_checkpoint, 7)
    again = TextPreprocessing.model_validate_json(one.model_dump_json())
    assert again == one
    assert torch.equal(again.inputs(TEXTS)["input_ids"], one.inputs(TEXTS)["input_ids"])
    assert one.inputs([])["input_ids"].shape == (0, 7)


def test_file_becomes_samples(tmp_path: Path, text_checkpoint: Path):
    path, known = (
        lines(tmp_path / "a.jsonl", rows()),
        TextPreprocessing.of_checkpoint(text_checkpoint, 8),
    )
    source = load_source(data(path, partition=Natural(scheme="natural", column="room")), known)
    assert source.classes == ["light", "weather"]
    assert len(source.train) + len(source.test) == 12
    assert source.train_groups is not None
    assert set(source.train_groups) == {"room0", "room1", "room2"}
    decoded = AutoTokenizer.from_pretrained(text_checkpoint).batch_decode(
        source.train.inputs["input_ids"], skip_special_tokens=True
    )
    for text, label, size in zip(
        decoded, source.train.labels.tolist(), source.train.stored_bytes.tolist(), strict=True
    ):
        assert TEXTS.index(text) % 2 == label
        assert size == len(text.encode())


def test_a_table_gives_the_samples_of_its_lines(tmp_path: Path, text_checkpoint: Path):
    known = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    wanted = load_source(data(lines(tmp_path / "a.jsonl", rows())), known)
    table = tmp_path / "a.CSV"
    cells = ["intent,text,room", *(f'{row["intent"]},"{row["text"]}",r' for row in rows())]
    table.write_bytes(("\ufeff" + "\r\n".join(cells) + "\r\n\r\n").encode())
    source = load_source(data(table), known)
    assert source.classes == wanted.classes
    assert torch.equal(source.train.inputs["input_ids"], wanted.train.inputs["input_ids"])
    assert torch.equal(source.train.labels, wanted.train.labels)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text,intent\nturn it off, now,light\n", "row 2 has 3 cells, the first row has 2"),
        (b"text;intent\nsing;light\n", "row 2 lacks text, intent; it has text;intent"),
        (b"text,intent,text\na,b,c\n", "row 1: two columns have one name"),
        (b'text,intent\n"sing,light\n', "unexpected end of data"),
        ("text,intent\n".encode("utf-16"), "as UTF-8"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(
    tmp_path: Path, text_checkpoint: Path, content: bytes, words: str
):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(FleetError, match=r"data\.train: .*a\.csv") as caught:
        load_source(data(path), TextPreprocessing.of_checkpoint(text_checkpoint, 8))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 13 is no JSON"),
        ("[1]", "line 13 is no JSON object"),
        ('{"text": "a"}', "lacks intent; it has text"),
        ('{"text": 3, "intent": "light"}', "'text' is 3, no text"),
        ('{"text": null, "intent": "light"}', "'text' is null, no text"),
        ('{"text": "a", "intent": true}', "must be text or an integer, and is true"),
        ('{"text": "a", "intent": [1]}', "'intent' must be text or an integer"),
    ],
)
def test_line_that_makes_no_sense_is_named(
    tmp_path: Path, text_checkpoint: Path, line: str, words: str
):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows()), line]))
    known = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    with pytest.raises(FleetError, match=r"data\.train: .*a\.jsonl") as caught:
        load_source(data(path), known)
    assert words in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path, text_checkpoint: Path):
    known = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FleetError, match=r"cannot read .*a\.jsonl"):
        load_source(data(tmp_path / "a.jsonl"), known)
    with pytest.raises(FleetError, match=r"cannot read .*a\.jsonl as a text"):
        known.read([tmp_path / "a.jsonl"])
    (tmp_path / "b.txt").write_text("  turn it on\n")
    assert known.read([tmp_path / "b.txt"]) == ["turn it on"]


def test_checkpoint_without_tokenizer(tmp_path: Path, text_checkpoint: Path):
    (tmp_path / "config.json").write_text((text_checkpoint / "config.json").read_text())
    with pytest.raises(FleetError, match="has no tokenizer"):
        TextPreprocessing.of_checkpoint(tmp_path, 8)


def fleet(path: Path, checkpoint: Path | None, **settings: object) -> Fleet:
    return Fleet.parse(
        {
            "data": {"source": "text", "train": str(path), "label_column": "intent", **settings},
            "reference": {"checkpoint": None if checkpoint is None else str(checkpoint)},
            "backbone": {"depths": [1, 2], "precisions": ["float32"]},
            "clusters": [{"name": "home", "devices": [{"name": "a", "storage": "1 MB"}]}],
        }
    )


def test_texts_need_a_checkpoint(tmp_path: Path, text_checkpoint: Path):
    with pytest.raises(FleetError, match=r"tokenizer in reference\.checkpoint"):
        fleet(tmp_path / "a.jsonl", None)
    images = {"crop_padding": 2, "checkpoint": str(text_checkpoint)}
    with pytest.raises(FleetError, match="are for images, not texts"):
        Fleet.parse({**fleet(tmp_path, text_checkpoint).model_dump(), "reference": images})


def test_world_of_texts(tmp_path: Path, text_checkpoint: Path):
    world = load_world(fleet(lines(tmp_path / "a.jsonl", rows(80)), text_checkpoint, max_tokens=8))
    parts = [world.public.train, world.shared["home"], world.private["a"].train]
    for part in parts:
        assert part.inputs["input_ids"].shape == (len(part), 8)
    assert isinstance(world.preprocessing, TextPreprocessing)


@pytest.fixture
def check_reference(tmp_path: Path) -> Callable[..., str]:
    from acme_fleet.inspection.plan import examine

    def check(checkpoint: Path, **settings: object) -> str:
        with pytest.raises(FleetError) as caught:
            examine(fleet(lines(tmp_path / "a.jsonl", rows(80)), checkpoint, **settings))
        return str(caught.value)

    return check


def test_loading_a_checkpoint_says_nothing(
    tmp_path: Path, text_checkpoint: Path, capfd: pytest.CaptureFixture[str]
):
    """Its pooler is left out on purpose; the library would warn of it at length."""
    from acme_fleet.inspection.plan import examine

    limit = examine(fleet(lines(tmp_path / "a.jsonl", rows(80)), text_checkpoint, max_tokens=8))
    assert limit.sizes.size == 8
    assert capfd.readouterr() == ("", "")


def test_more_tokens_than_the_model_takes(check_reference, text_checkpoint: Path):
    assert "data.max_tokens: 40 is more than the 32" in check_reference(
        text_checkpoint, max_tokens=40
    )


def test_tokens_that_the_model_lacks_are_named_wherever_they_stand(
    tmp_path: Path, text_checkpoint: Path
):
    """Public data alone know no such word; a device's, an edge's, test data and files do."""
    small = tmp_path / "small"
    small.mkdir()
    for file in text_checkpoint.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    config = json.loads((small / "config.json").read_text())
    vocabulary = json.loads((small / "tokenizer.json").read_text())["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    assert all(last not in text.split() for text in TEXTS)
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": vocabulary[last]}))
    known = TextPreprocessing.of_checkpoint(small, 8)
    assert known.vocabulary == vocabulary[last]
    assert known.inputs(TEXTS)["input_ids"].max() < vocabulary[last]
    words = f"the text 'sing {last}' has the token '{last}', number {vocabulary[last]}"
    (tmp_path / "a.txt").write_text(f"sing {last}")
    with pytest.raises(FleetError, match=words):
        known.inputs(known.read([tmp_path / "a.txt"]))
    path = lines(tmp_path / "a.jsonl", rows(80))
    rare = [{**row, "text": f"sing {last}"} for row in rows(40) if isinstance(row, dict)]
    own = lines(tmp_path / "rare.jsonl", rare)
    with pytest.raises(FleetError, match=f"data.test: {words}"):
        load_world(fleet(path, small, max_tokens=8, test=str(own)))
    for place, owner in (("device", "a"), ("cluster", "home")):
        content = fleet(path, small, max_tokens=8).model_dump()
        cluster = content["clusters"][0]
        (cluster["devices"][0] if place == "device" else cluster)["data"] = own
        cluster["data"] = cluster["data"] or path
        with pytest.raises(FleetError, match=f"{place} {owner}: data: {words}"):
            load_world(Fleet.parse(content))


@pytest.mark.parametrize("text", ["", " ", "\u200b"])
def test_texts_without_a_token_are_refused(text_checkpoint: Path, text: str):
    known = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    with pytest.raises(FleetError, match="has no token that stands for a word in the first 8"):
        known.inputs(["sing", text])
    with pytest.raises(FleetError, match="in the first 2"):
        TextPreprocessing.of_checkpoint(text_checkpoint, 2).inputs(["sing"])


def test_tokenizer_of_another_model(check_reference, text_checkpoint: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    for file in text_checkpoint.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    document = json.loads((other / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary.update({name: index + 500 for name, index in vocabulary.items() if index > 4})
    (other / "tokenizer.json").write_text(json.dumps(document))
    assert "the model knows" in check_reference(other, max_tokens=8)


def test_labels_may_be_numbers(tmp_path: Path, text_checkpoint: Path):
    numbered = [{"text": TEXTS[i % 4], "intent": i % 3} for i in range(12)]
    known = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    source = load_source(data(lines(tmp_path / "a.jsonl", numbered)), known)
    assert source.classes == ["0", "1", "2"]
    assert np.unique(source.train.labels.numpy()).tolist() == [0, 1, 2]
