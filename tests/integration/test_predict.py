"""``acme predict``: files, folders, texts; every answer in order, no file spoils another."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.errors import FleetError
from acme_fleet.inspection.predict import DeviceModel, predict_files
from acme_fleet_runtime import answers
from acme_fleet_runtime.answers import Classified
from acme_fleet_runtime.inputs import Input, Skipped, find_inputs


def _acme(*arguments: str | Path, given: bytes = b"") -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=given)


def _answers(*arguments: str | Path, given: bytes = b"") -> list[dict[str, Any]]:
    told = _acme("predict", *arguments, "--json", given=given)
    assert "Traceback" not in told.output
    return [json.loads(line) for line in told.stdout.splitlines()]


def _png(path: Path, seed: int, size: int = 8) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture(scope="module")
def device(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device's folder, far from its run."""
    folder = tmp_path_factory.mktemp("device") / "cam"
    shutil.copytree(finished.path / "devices" / "cam-1", folder)
    shutil.rmtree(folder / "state", ignore_errors=True)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images with and without a suffix, at two levels, among what is no image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(3):
        _png(folder / f"{number}.png", number)
    _png(folder / "more" / "no-suffix", 3, size=20)
    whole = (folder / "0.png").read_bytes()
    (folder / "more" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    os.mkfifo(folder / "pipe")
    return folder


def test_device_folder_alone_answers_as_the_run_does(finished, device: Path, photos: Path):
    alone = _answers(device, photos / "0.png")
    assert alone == _answers(finished.path, "--device", "cam-1", photos / "0.png")
    (known,) = predict_files(finished.path, "cam-1", [photos / "0.png"])
    assert alone[0]["class"] == known.class_name
    assert alone[0]["probability"] == known.probability
    assert sum(alone[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert next(iter(alone[0]["probabilities"])) == known.class_name
    assert alone[0]["probability"] == max(alone[0]["probabilities"].values())


def test_folder_by_content_in_order_and_what_was_skipped(device: Path, photos: Path):
    told = _acme("predict", device, photos, photos / "0.png", "--json")
    records = [json.loads(line) for line in told.stdout.splitlines()]
    names = ["0.png", "1.png", "2.png", "more/cut.png", "more/no-suffix", "0.png"]
    assert [record["file"] for record in records] == [str(photos / name) for name in names]
    assert ["error" in record for record in records] == [name == "more/cut.png" for name in names]
    assert records[0] == records[-1]
    assert told.exit_code == 1
    *_, skipped, last = told.stderr.splitlines()
    assert skipped.startswith("skipped, no image: 2 (")
    assert last == "error: 1 of 6 could not be read"


def test_table_has_the_same_answers(device: Path, photos: Path):
    records = _answers(device, photos / "0.png", photos / "1.png", "--top", "2")
    shown = _acme("predict", device, photos / "0.png", photos / "1.png", "--top", "2").output
    rows = [line.split("│")[2:4] for line in shown.splitlines() if line.startswith("│")]
    expected = [pair for record in records for pair in record["probabilities"].items()]
    assert [(name.strip(), float(p)) for name, p in rows] == [
        (name, pytest.approx(p, abs=6e-4)) for name, p in expected
    ]
    assert all(len(record["probabilities"]) == 2 for record in records)


def test_alone_as_in_a_batch_and_never_all_in_memory(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(answers, "_BATCH", 4)
    paths = [_png(tmp_path / f"{number}.png", number) for number in range(11)]
    paths.insert(5, tmp_path / "none.png")
    model, read = DeviceModel.open(device), 0

    def inputs():
        nonlocal read
        for path in paths:
            read += 1
            yield Input(str(path))

    together = []
    for answer in model.classify(inputs()):
        together.append(answer)
        assert read - len(together) < 4
    assert [answer.input.file for answer in together] == [str(path) for path in paths]
    for path, answer in zip(paths, together, strict=True):
        (alone,) = model.classify([Input(str(path))])
        if isinstance(answer, Classified):
            assert isinstance(alone, Classified)
            assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
        else:
            assert (path.name, answer) == ("none.png", alone)


def test_name_that_is_not_utf_8(device: Path, tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    _png(path, 0)
    (record,) = _answers(device, tmp_path)
    assert record["file"] == str(path)
    assert "class" in record
    told = _acme("predict", device, tmp_path)
    assert told.exit_code == 0, told.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{device}"], "only a run directory knows test data"),
        (["{device}", "--json"], "need files or --text"),
        (["{device}", "--text", "a"], "the model takes images"),
        (["{device}", "-"], "the model takes images"),
        (["{run}", "x.png"], "name a device with --device: cam-1, cam-2"),
        (["{run}/nowhere", "x.png"], "no such folder"),
        (["{run}/fleet.yaml", "x.png"], "it is a file"),
        (["{run}/devices", "x.png"], "neither a run directory"),
        (["{device}", "{empty}"], "nothing to classify"),
    ],
)
def test_what_is_missing_is_said(
    finished, device: Path, tmp_path: Path, arguments: list[str], words: str
):
    places = {"device": device, "run": finished.path, "empty": tmp_path}
    told = _acme("predict", *(argument.format(**places) for argument in arguments))
    assert told.exit_code == 2
    assert words in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.json", b'{"a": 1}'),
        ("labels.json", b'["a"]'),
        ("labels.json", b""),
        ("preprocessor_config.json", b"[]"),
        ("preprocessor_config.json", b"[" * 100_000),
        ("model.safetensors", b"\0" * 100),
    ],
)
def test_damaged_folder_is_named(
    device: Path, tmp_path: Path, photos: Path, name: str, content: bytes
):
    shutil.copytree(device, tmp_path / "own")
    (tmp_path / "own" / name).write_bytes(content)
    told = _acme("predict", tmp_path / "own", photos / "0.png")
    assert told.exit_code == 2, told.output
    assert name in told.stderr
    assert "Traceback" not in told.output


# --- texts ------------------------------------------------------------------------------------


class _Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def _found(monkeypatch: pytest.MonkeyPatch, given: bytes, *paths: Path, **options: Any):
    monkeypatch.setattr("sys.stdin", _Stdin(given))
    skipped = Skipped()
    texts = options.pop("texts", ())
    found = list(find_inputs(paths, texts, skipped, images=False, lines=options["lines"]))
    return found, skipped


def test_lines_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A line ends at a line feed alone; blank ones are left out; a bad one spoils no other."""
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\u2028two\r\n\n three \n".encode() + b"\xff\nlast")
    found, _ = _found(monkeypatch, b"four\nfive", path, Path("-"), lines=True, texts=["six"])
    assert [(one.file, one.line, one.text) for one in found] == [
        (str(path), 1, "one\u2028two"),
        (str(path), 3, "three"),
        (str(path), 4, None),
        (str(path), 5, "last"),
        ("-", 1, "four"),
        ("-", 2, "five"),
        ("", 0, "six"),
    ]
    assert [bool(one.error) for one in found] == [False, False, True, *[False] * 4]


def test_standard_input_is_one_text(monkeypatch: pytest.MonkeyPatch):
    (one,), _ = _found(monkeypatch, "\ufeffone\ntwo\n".encode(), Path("-"), lines=False)
    assert (one.file, one.text) == ("-", "one\ntwo")


def test_folder_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "long").write_text("ä" * 5000)  # a character across the first bytes' end
    (tmp_path / "a.txt").write_text("x")
    _png(tmp_path / "c.png", 0)
    found, skipped = _found(monkeypatch, b"", tmp_path, lines=False)
    assert [one.file for one in found] == [str(tmp_path / "a.txt"), str(tmp_path / "b" / "long")]
    assert (skipped.count, skipped.names) == (1, [str(tmp_path / "c.png")])


def test_words_that_name_no_file_are_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = Path("turn the light on, please.")
    (one,), _ = _found(monkeypatch, b"", words, lines=False)
    assert (one.file, one.text, one.error) == ("", str(words), "")
    for named in ("light", "my tickets.txt", f"{tmp_path}/my tickets", "on/off the light"):
        (one,), _ = _found(monkeypatch, b"", Path(named), lines=False)
        assert one.text is None
        assert "no such file or folder; --text takes these words" in one.error
    (tmp_path / "a text").write_text("hello")
    monkeypatch.chdir(tmp_path)
    (one,), _ = _found(monkeypatch, b"", Path("a text"), lines=False)
    assert (one.file, one.text) == ("a text", None)


def test_text_with_half_a_character_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch):
    (one,), _ = _found(monkeypatch, b"", lines=False, texts=["a\udcff"])
    assert "as a text" in one.error


def test_a_text_that_the_model_has_no_embedding_for(device: Path):
    """Found before the model is asked, so that the rest of the batch is answered."""
    own = DeviceModel.open(device)

    class Words:
        def inputs(self, texts: list[str]) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.tensor([[int(texts[0])]])}

    class Embeds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = self
            self.embeddings = torch.nn.Embedding(3, 10)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embeddings

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.embeddings(input_ids[:, 0])

    words = DeviceModel(device, Embeds(), own.class_names, Words())  # type: ignore[arg-type]
    first, second, third = words.classify([Input("", text=text) for text in ("2", "3", "0")])
    assert isinstance(first, Classified)
    assert isinstance(third, Classified)
    assert "token number 3" in second.reason


def test_predict_files_refuses_the_first_bad_file(finished, photos: Path):
    with pytest.raises(FleetError, match=r"notes\.txt"):
        predict_files(finished.path, "cam-1", [photos / "0.png", photos / "notes.txt"])


def test_a_text_without_end(monkeypatch: pytest.MonkeyPatch):
    (one,) = find_inputs([Path("/dev/zero")], [], Skipped(), images=False, lines=True)
    assert one.error == (
        "cannot read /dev/zero, line 1 as a text: it has more than 16,777,216 bytes"
    )
    endless = io.BytesIO(b"a" * (2**24 + 1))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(endless))
    for lines in (True, False):
        endless.seek(0)
        (one,) = find_inputs([Path("-")], [], Skipped(), images=False, lines=lines)
        assert "has more than 16,777,216 bytes" in one.error
