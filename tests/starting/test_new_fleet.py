"""`acme init`: what it finds in data, and that the file it writes checks and runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import examine
from acme_fleet.runs.summary import Summary
from acme_fleet.starting import written
from acme_fleet.starting.devices import (
    about_devices,
    device_types,
    storage_bytes,
    wanted_devices,
)
from acme_fleet.starting.look import look_at_images, look_at_texts
from acme_fleet.starting.shape import Shape
from tiny_language import bytewise_decoder, tiny_llama
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


def test_an_image_that_a_run_refuses_is_named(photos: Path, tmp_path: Path):
    shutil.copytree(photos, tmp_path / "pets")
    deep = tmp_path / "pets" / "digit-1" / "3.png"
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(deep)
    found = look_at_images(tmp_path / "pets", _quiet)
    assert found.samples == 159
    assert found.broken[0].startswith(f"cannot read {deep}: images of more than 8 bits")


def test_a_checkpoint_of_another_kind_is_refused_by_its_kind(
    photos: Path, tmp_path: Path, text_checkpoint: Path
):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": chat}))
    texts = write_rows(tmp_path / "said.jsonl", said(24))
    images = tmp_path / "vit"
    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(images)
    for data, checkpoint, told in (
        (("--text", chats), text_checkpoint, "a bert writes no text; decoders are"),
        (("--text", texts), images, "it takes images, the data are texts"),
        (("--images", photos), text_checkpoint, "it takes texts, the data are images"),
    ):
        result = _acme("init", tmp_path / "a.yaml", *data, "--checkpoint", checkpoint)
        assert result.exit_code == 2
        assert told in " ".join(result.stderr.split())


def test_a_table_is_read_as_its_lines_are(tmp_path: Path, text_checkpoint: Path):
    table = tmp_path / "said.csv"
    table.write_text("text,intent\n" + "".join(f"{r['text']},{r['intent']}\n" for r in said(60)))
    lines = write_rows(tmp_path / "said.jsonl", said(60))
    found = look_at_texts(table, text_checkpoint, None)
    assert found.classes == look_at_texts(lines, text_checkpoint, None).classes


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
    assert found.told[-1] == "speaker says whose a text is: 3 of them, s0, s1, s2"
    assert found.settings["partition"] == {"scheme": "natural", "column": "speaker"}
    given = ("--text", tmp_path / "a.jsonl", "--checkpoint", text_checkpoint)
    result = _acme("init", tmp_path / "a.yaml", *given, "--devices", "4")
    assert result.exit_code == 2
    assert "4 devices, and the column 'speaker' has 3 values" in result.stderr


def test_a_line_without_the_owner_that_others_have_is_named(tmp_path: Path, text_checkpoint: Path):
    """Else everybody's texts would be dealt alike, without a word."""
    rows = [{**row, "speaker": f"s{n % 3}"} for n, row in enumerate(said(60))]
    del rows[7]["speaker"]
    found = look_at_texts(write_rows(tmp_path / "a.jsonl", rows), text_checkpoint, None)
    assert (found.samples, found.owners) == (59, 3)
    assert found.broken[0].endswith("line 8 lacks speaker, which says whose the other texts are")
    few = [{**row, "speaker": f"s{n}"} if n < 20 else row for n, row in enumerate(said(60))]
    found = look_at_texts(write_rows(tmp_path / "b.jsonl", few), text_checkpoint, None)
    assert (found.samples, found.owners, found.broken) == (60, None, [])


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


def test_a_text_is_cut_only_where_few_are_far_longer(tmp_path: Path, text_checkpoint: Path):
    rows = said(100)
    twice = {**rows[0], "text": " ".join(["light"] * 9)}
    found = look_at_texts(write_rows(tmp_path / "a.jsonl", [*rows, twice]), text_checkpoint, None)
    longest = int(re.findall(r"(\d+) at most", found.told[1])[0])
    assert found.tokens >= longest
    assert "cuts" not in found.told[1]
    far = {**rows[0], "text": " ".join(["light"] * 30)}
    found = look_at_texts(write_rows(tmp_path / "b.jsonl", [*rows, far]), text_checkpoint, None)
    assert found.told[1].endswith("; max_tokens: 8 cuts 1 of them")


def test_of_many_classes_the_smallest_and_the_largest_are_named(
    tmp_path: Path, text_checkpoint: Path
):
    rows = [{"text": "light on", "intent": f"c{n:02}"} for n in range(20) for _ in range(n + 10)]
    found = look_at_texts(write_rows(tmp_path / "a.jsonl", rows), text_checkpoint, None)
    assert "the smallest first: c00 10, c01 11, " in found.told[2]
    assert "c05 15, … 8 more …, c14 24, " in found.told[2]
    assert found.told[2].endswith("c19 29")


# --- devices ----------------------------------------------------------------------------------


def test_devices_by_number_by_type_and_by_name():
    (four,) = wanted_devices("4")
    assert (four.kind, four.names) == ("raspberry-pi-5", ("pi-1", "pi-2", "pi-3", "pi-4"))
    phones, cameras = wanted_devices("android-phone:2, door=esp32-camera ,esp32-camera")
    assert phones.names == ("phone-1", "phone-2")
    assert cameras.names == ("door", "camera-2")
    (doors,) = wanted_devices("door=raspberry-pi-5:3")
    assert doors.names == ("door-1", "door-2", "door-3")


def test_a_storage_is_a_type_with_the_costs_of_the_default_one():
    small, large = wanted_devices("gateway=20 MB:2,1.5GB")
    assert small.names == ("gateway-1", "gateway-2")
    assert [storage_bytes(each.of) for each in (small, large)] == [20_000_000, 1_500_000_000]
    pi = device_types()["raspberry-pi-5"]
    assert (small.of.gflops, small.of.busy_w) == (pi.gflops, pi.busy_w)


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ("gateway=20MB:2", ["gateway-site"]),
        ("20MB:2,raspberry-pi-5:2", ["raspberry-pi-5-site", "20MB-site"]),
        ("door=1GB,door-2=2GB", ["2GB-site", "1GB-site"]),
        ("door=1GB,hall=1GB", ["1GB-site"]),
    ],
)
def test_a_cluster_is_named_as_its_devices_are(devices: str, names: list[str]):
    lines = written._clusters(Shape(2, 8, 16, 4), wanted_devices(devices))
    assert [line.split()[-1] for line in lines if line.startswith("  - name: ")] == names


def test_storage_and_a_missing_runtime_are_told():
    pis, cameras, plain, _ = about_devices(wanted_devices("raspberry-pi-5:5,esp32-camera,20MB"))
    assert pis.startswith("pi-1, pi-2, pi-3 and 2 more: Raspberry Pi 5, 256 MB for the model")
    assert "no runtime of `acme export` is for it" in cameras
    assert not any("no runtime" in line for line in (pis, plain))
    assert "20MB for the model" in plain
    (only,) = about_devices(wanted_devices("gateway=20MB:2"))  # who names storages knows how
    assert only.startswith("gateway-1, gateway-2: a device with the speed")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("toaster:2", "there is no 'toaster'; choose one of android-phone, esp32-camera"),
        ("a=b=c", "'a=b=c' is no TYPE, TYPE:NUMBER or NAME=TYPE"),
        ("0", "give 1 to 10,000 devices"),
        ("20MB:0", "give 1 to 10,000 devices"),
        ("0MB", "0MB is no room for a model"),
        ("20XB", "there is no '20XB'; choose one of .*, or a storage such as 20MB"),
        ("pi-1=20MB,raspberry-pi-5", "a name is for one device"),
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
    assert "better is a pre-trained one, --checkpoint FOLDER" in result.output


@pytest.mark.parametrize(("classes", "rule"), [(20, ("both", "holders", 7)), (2, (None, None, 2))])
def test_few_texts_of_a_class_on_a_device_are_mixed_by_rows(
    tmp_path: Path, text_checkpoint: Path, classes: int, rule: tuple[str | None, str | None, int]
):
    rows = [{"text": "light on", "label": f"c{n % classes}"} for n in range(400)]
    texts, path = write_rows(tmp_path / "said.jsonl", rows), tmp_path / "mine.yaml"
    told = _acme("init", path, "--text", texts, "--checkpoint", text_checkpoint, "--devices", "4")
    assert told.exit_code == 0, told.output
    own = Fleet.from_yaml(path).personalization
    default = type(own)()
    expected = (rule[0] or default.mix, rule[1] or default.classifier, rule[2])
    assert (own.mix, own.classifier, own.rounds) == expected


def test_few_photos_of_a_class_on_a_device_are_mixed_by_rows(photos: Path, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    assert _acme("init", path, "--images", photos, "--devices", "2").exit_code in (0, 1)
    own = Fleet.from_yaml(path).personalization
    assert (own.mix, own.classifier, own.rounds) == ("both", "holders", 7)


def test_comments_of_the_file_are_in_a_column(photos: Path, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    _acme("init", path, "--images", photos, "--devices", "door=esp32-camera")
    lines = path.read_text().splitlines()
    beside = [match for line in lines if (match := re.fullmatch(r"(.*[^ #])( +)# .*", line))]
    places = {len(code) + len(gap) for code, gap in (m.groups() for m in beside) if len(code) < 28}
    assert len(beside) > 5
    assert places == {29}
    assert Fleet.from_yaml(path).devices[0].runs_artifacts is False


def test_samples_of_a_device_are_those_of_the_plan(photos: Path, tmp_path: Path):
    """Of few samples more are for validation, and that they are few is said."""
    path = tmp_path / "mine.yaml"
    told = _acme("init", path, "--images", photos, "--devices", "2").output
    fleet = Fleet.from_yaml(path)
    assert fleet.data.validation == 0.3
    held = list(examine(fleet).holdings.values())
    words = re.search(
        r"gets (.*) samples to train on, (.*) to validate on, (.*) to test on; f", told
    )
    assert words is not None
    for part, said_of in zip(("train", "validation", "test"), words.groups(), strict=True):
        counts = [getattr(own, part) for own in held]
        assert {int(count) for count in said_of.split(" to ")} == {min(counts), max(counts)}
    mean = sum(own.train for own in held) / 2
    about = re.search(r"about (\d+) samples of a device to train on", path.read_text())
    assert about is not None
    assert int(about[1]) == pytest.approx(mean, abs=2)


def test_a_plan_that_was_not_tried_is_told(texts: Path, tmp_path: Path):
    result = _acme("init", tmp_path / "a.yaml", "--text", texts)
    assert result.exit_code == 0, result.output
    assert "the plan was not tried: sentence-transformers/all-MiniLM-L6-v2 is" in result.output
    assert "--checkpoint FOLDER" in result.output


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


def test_a_vocabulary_that_is_cut_is_the_one_that_tokens_are_counted_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It lengthens texts, and a language model refuses one that is too long."""
    monkeypatch.setattr(written, "_VOCABULARY", 260)
    rows = [{"prompt": row["text"], "answer": row["intent"]} for row in said(120)]
    write_rows(tmp_path / "a.jsonl", rows)
    llama = bytewise_decoder(tmp_path / "llama")
    whole = look_at_texts(tmp_path / "a.jsonl", llama, None).tokens
    path = tmp_path / "mine.yaml"
    result = _acme("init", path, "--text", tmp_path / "a.jsonl", "--checkpoint", llama)
    assert result.exit_code == 0, result.output
    assert "in a vocabulary that is cut to 260 tokens, those of your texts first" in result.output
    assert Fleet.from_yaml(path).data.max_tokens > whole
    assert _acme("check", path).exit_code == 0


def test_smaller_candidates_are_added_where_a_device_stores_none_of_the_usual_ones(
    texts: Path, text_checkpoint: Path, tmp_path: Path
):
    given = ("--text", texts, "--checkpoint", text_checkpoint, "--devices")
    assert _acme("init", tmp_path / "usual.yaml", *given, "1GB:2").exit_code == 0
    least = examine(Fleet.from_yaml(tmp_path / "usual.yaml")).sizes.min()
    path = tmp_path / "small.yaml"
    result = _acme("init", path, *given, f"{0.9 * least / 1000:.1f}kB:2")
    assert result.exit_code == 0, result.output
    assert "candidates smaller than usual are among them" in result.stdout
    assert Fleet.from_yaml(path).backbone.hidden == [0.5, 1.0]
    assert _acme("check", path).exit_code == 0


def test_a_limit_that_nothing_fits_is_told(texts: Path, text_checkpoint: Path, tmp_path: Path):
    given = ("--text", texts, "--checkpoint", text_checkpoint, "--devices", "4kB")
    result = _acme("init", tmp_path / "a.yaml", *given)
    assert result.exit_code == 1
    assert "the plan does not work out yet: cluster 4kB-site" in result.stderr
    assert "device device-1 stores 4,000" in result.stderr
    assert "look at its plan" not in result.output
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
        (("--text", "nowhere.jsonl"), "--text: nowhere.jsonl: no such file"),
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
    assert "error: --text: " in result.stderr
    assert "line 1 has the keys words, kind" in result.stderr
    assert result.stderr.count("--text: ") == 1
