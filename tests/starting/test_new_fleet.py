"""`acme init`: what it finds in data, and that the file it writes checks and runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.runs.summary import Summary
from acme_fleet.starting import devices
from acme_fleet.starting.devices import device_types, wanted_devices
from acme_fleet.starting.look import look_at_images, look_at_texts
from acme_fleet.starting.shape import Shape
from tiny_language import tiny_llama
from tiny_texts import said, write_rows


def _acme(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _quiet(done: int, total: int) -> None:
    assert done <= total


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 40 handwritten digits, as files."""
    folder = tmp_path_factory.mktemp("photos")
    images, labels = load_digits(n_class=4, return_X_y=True)
    for label in range(4):
        of = folder / f"digit-{label}"
        of.mkdir()
        for number, image in enumerate(np.asarray(images)[np.asarray(labels) == label][:40]):
            grey = (image.reshape(8, 8) * 15).astype(np.uint8)
            Image.fromarray(grey).save(of / f"{number}.png")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "said.jsonl", said(240))


# --- what is found ----------------------------------------------------------------------------


def test_images_are_counted_and_measured(photos: Path):
    found = look_at_images(photos, _quiet)
    assert found.classes == {f"digit-{label}": 40 for label in range(4)}
    assert (found.samples, found.side, found.channels) == (160, 8, 1)
    assert "160 images of 4 classes, grey" in found.told[0]
    assert found.broken == []


def test_a_broken_image_is_named_and_the_file_is_written_all_the_same(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(12):
            colour = (10 * number, 0, 0)
            Image.new("RGB", (20, 30 + number), colour).save(
                tmp_path / "pets" / name / f"{number}.png"
            )
    cut = tmp_path / "pets" / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:40])
    result = _acme("init", tmp_path / "pets.yaml", "--images", tmp_path / "pets")
    assert result.exit_code == 1
    assert f"cannot be read: cannot read {cut} as an image" in result.stderr
    assert "23 images of 2 classes, in colour; shorter side 20 pixels" in result.output
    assert "cat 11" in (tmp_path / "pets.yaml").read_text()


def test_few_samples_of_a_class_are_told(photos: Path, tmp_path: Path):
    for label, count in ((0, 12), (1, 3)):
        (tmp_path / f"digit-{label}").mkdir()
        for number in range(count):
            name = f"digit-{label}/{number}.png"
            (tmp_path / name).write_bytes((photos / name).read_bytes())
    assert look_at_images(tmp_path, _quiet).told[-1] == "fewer than 10 samples: digit-1"


def test_texts_with_labels_are_to_be_classified(texts: Path, text_checkpoint: Path):
    found = look_at_texts(texts, text_checkpoint, None)
    assert found.template == "text"
    assert found.classes == {"light": 80, "music": 80, "weather": 80}
    assert found.settings["label_column"] == "intent"
    assert found.tokens == 8
    assert found.owners is None


@pytest.mark.parametrize(
    "row",
    [
        {"text": "turn the light on"},
        {"prompt": "turn the light", "answer": "on"},
        {
            "messages": [
                {"role": "user", "content": "light"},
                {"role": "assistant", "content": "on"},
            ]
        },
    ],
)
def test_texts_without_labels_are_for_an_assistant(row: dict[str, Any], tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", [row, row])
    template = (
        "{% for message in messages %}{{ message.role }} {{ message.content }} </s>{% endfor %}"
    )
    found = look_at_texts(path, tiny_llama(tmp_path / "llama", template=template), None)
    assert (found.template, found.settings["source"]) == ("assistant", "language")


def test_an_owner_column_decides_who_gets_what(tmp_path: Path, text_checkpoint: Path):
    rows = [{**row, "speaker": f"s{n % 3}"} for n, row in enumerate(said(60))]
    found = look_at_texts(write_rows(tmp_path / "a.jsonl", rows), text_checkpoint, None)
    assert found.owners == 3
    assert found.settings["partition"] == {"scheme": "natural", "column": "speaker"}
    given = ("--text", tmp_path / "a.jsonl", "--checkpoint", text_checkpoint)
    result = _acme("init", tmp_path / "a.yaml", *given, "--devices", "4")
    assert result.exit_code == 2
    assert "4 devices, and the column 'speaker' has 3 values" in result.stderr


def test_broken_lines_are_named_with_their_numbers(tmp_path: Path, text_checkpoint: Path):
    lines = [json.dumps(row) for row in said(30)]
    lines[4] = '{"text": "turn'
    lines[7] = '{"text": "light on"}'
    lines[9] = '{"text": " ", "intent": "light"}'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    found = look_at_texts(path, text_checkpoint, None)
    assert found.samples == 27
    assert [line.partition("a.jsonl, ")[2].partition(" ")[2][0] for line in found.broken] == [
        *("5", "8", "1"),
    ]
    assert "line 10: 'text' is empty" in found.broken[2]


# --- devices ----------------------------------------------------------------------------------


def test_devices_by_number_by_type_and_by_name():
    (four,) = wanted_devices("4")
    assert (four.kind, four.names) == ("raspberry-pi-5", ("pi-1", "pi-2", "pi-3", "pi-4"))
    phones, cameras = wanted_devices("android-phone:2, door=esp32-camera ,esp32-camera")
    assert phones.names == ("phone-1", "phone-2")
    assert cameras.names == ("door", "camera-2")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("toaster:2", "there is no 'toaster'; choose one of android-phone, esp32-camera"),
        ("a=b=c", "'a=b=c' is no TYPE, TYPE:NUMBER or NAME=TYPE"),
        ("0", "give 1 to 10,000 devices"),
        ("raspberry-pi-5:100000", "give 1 to 10,000 devices"),
        ("a=esp32-camera,a=android-phone", "a name is for one device"),
        ("a/b=esp32-camera", "a name has 1 to 64 letters"),
        ("", "is no TYPE"),
    ],
)
def test_wrong_devices_are_refused(given: str, told: str):
    with pytest.raises(FleetError, match=told):
        wanted_devices(given)


def test_latency_follows_operations():
    """A layer of twice the tokens takes a little more than twice as long, at equal power."""
    pi = device_types()["raspberry-pi-5"]
    short, long = (pi.energy(Shape(6, 128, 512, tokens)) for tokens in (50, 100))
    assert short["power_w"] == long["power_w"] == 9.0
    assert 2 < long["latency_per_layer_s"] / short["latency_per_layer_s"] < 2.2
    by_hand = 2 * 50 * (4 * 128**2 + 2 * 50 * 128 + 2 * 128 * 512) / 38e9
    assert short["latency_per_layer_s"] == pytest.approx(by_hand, rel=0.01)


# --- the file ---------------------------------------------------------------------------------


def test_images_to_a_checked_plan(photos: Path, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    result = _acme("init", path, "--images", photos, "--devices", "2")
    assert result.exit_code == 0, result.output
    assert sum("#" in line for line in path.read_text().splitlines()) > 10
    fleet = Fleet.from_yaml(path)
    assert fleet.data.image_size == 8
    assert [device.name for device in fleet.devices] == ["pi-1", "pi-2"]
    assert fleet.devices[0].energy.latency_per_layer_s > 0
    assert _acme("check", path).exit_code == 0


def _shortened(path: Path) -> None:
    """The same file with one epoch everywhere, and a search of one step."""
    text = re.sub(r"epochs: \d+", "epochs: 1", path.read_text())
    path.write_text(text.replace("steps: 30", "steps: 1").replace("rounds: 2", "rounds: 1"))


def test_texts_to_models_in_short(texts: Path, text_checkpoint: Path, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    given = ("--text", texts, "--checkpoint", text_checkpoint, "--devices", "android-phone:2")
    assert _acme("init", path, *given).exit_code == 0
    assert _acme("check", path).exit_code == 0
    _shortened(path)
    assert _acme("run", path, "--out", tmp_path / "run").exit_code == 0
    summary = Summary.read(tmp_path / "run" / "summary.json")
    assert [device.name for device in summary.devices] == ["phone-1", "phone-2"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("images", 0.5), ("texts", 0.8)])
def test_to_models_as_written(
    kind: str, least: float, photos: Path, texts: Path, text_checkpoint: Path, tmp_path: Path
):
    """Four classes of digits, and three intents that their words tell apart."""
    path = tmp_path / "mine.yaml"
    given = {"images": ("--images", photos), "texts": ("--text", texts)}[kind]
    checkpoint = ("--checkpoint", text_checkpoint) if kind == "texts" else ()
    assert _acme("init", path, *given, *checkpoint, "--devices", "2").exit_code == 0
    assert _acme("run", path, "--out", tmp_path / "run").exit_code == 0
    summary = Summary.read(tmp_path / "run" / "summary.json")
    assert min(device.accuracy for device in summary.devices) > least


def test_messages_to_a_checked_plan(tmp_path: Path):
    rows = [{"prompt": row["text"], "answer": row["intent"]} for row in said(120)]
    write_rows(tmp_path / "a.jsonl", rows)
    path = tmp_path / "mine.yaml"
    llama = tiny_llama(tmp_path / "llama")
    result = _acme("init", path, "--text", tmp_path / "a.jsonl", "--checkpoint", llama)
    assert result.exit_code == 0, result.output
    assert Fleet.from_yaml(path).task == "generation"
    assert _acme("check", path).exit_code == 0


def test_a_limit_that_nothing_fits_is_told(
    texts: Path, text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = device_types()["esp32-camera"].model_copy(update={"storage": "4 kB"})
    monkeypatch.setattr(devices, "device_types", lambda: {"esp32-camera": tiny})
    given = ("--text", texts, "--checkpoint", text_checkpoint, "--devices", "esp32-camera")
    result = _acme("init", tmp_path / "a.yaml", *given)
    assert result.exit_code == 1
    assert "the plan does not work out yet: cluster esp32-camera-site" in result.stderr
    assert "device camera-1 stores 4,000" in result.stderr
    assert (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("template", ["vision", "text", "assistant"])
def test_templates_can_be_read(template: str, tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    result = _acme("init", path, "--template", template)
    assert result.exit_code == 0, result.output
    fleet = Fleet.from_yaml(path)
    assert (fleet.task == "generation") == (template == "assistant")
    if template == "vision":
        assert fleet.data.source == "digits"
    else:
        assert fleet.data.train == (tmp_path / "train.jsonl").resolve()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--devices", "3"), "say what you have: --images FOLDER"),
        (("--images", "a", "--text", "b"), "give one of --images and --text, not both"),
        (("--text", "b", "--template", "vision"), "vision is for --images or --dataset"),
        (("--images", "nowhere"), "--images: nowhere"),
        (("--text", "nowhere.jsonl"), "--text: cannot read nowhere.jsonl"),
        (("--template", "vision", "--checkpoint", "./nowhere"), "there is no such folder"),
    ],
)
def test_wrong_options_are_refused(given: tuple[str, ...], told: str, tmp_path: Path):
    result = _acme("init", tmp_path / "fleet.yaml", *given)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "fleet.yaml").exists()


def test_keys_that_say_nothing_are_refused(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [{"words": "turn on", "kind": "light"}])
    result = _acme("init", tmp_path / "fleet.yaml", "--text", tmp_path / "a.jsonl")
    assert result.exit_code == 2
    assert "has the keys words, kind" in result.stderr
