"""Commands that README and docs show, typed as they stand, one after the other.

Files, folders and checkpoints that a page names are small ones; servers do not wait for requests.
What is not typed here is in ``ELSEWHERE``, with a reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from transformers import PreTrainedModel
from typer.testing import CliRunner

from acme_fleet.cli import app, hosts
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.sources.files import read_digits
from acme_fleet.pipeline import customize
from acme_fleet_runtime.cli import main
from tiny_artifact import write_artifact
from tiny_device import shipped_folder
from tiny_distillation import task, teacher
from tiny_fleet import SHORT, tiny
from tiny_language import bytewise_decoder, language_settings, written_rows
from typed_commands import BLOCK, ELSEWHERE, PAGES, ROOT, typed

Page = Callable[..., list[str]]
_TYPED: set[str] = set()


def _types(page: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks the test that types a page's commands."""
    _TYPED.add(page)
    return lambda test: test


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos; whatever serves comes back at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACME_REGISTRY", raising=False)
    monkeypatch.setattr("acme_fleet_runtime.server.serve", lambda *_: None)
    monkeypatch.setattr("acme_fleet.report.live.server.serve", lambda *_: None)
    Image.open(ROOT / "docs/digit.png").convert("L").save("photo.jpg")
    return tmp_path


@pytest.fixture
def type_page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """Types all commands of a page but those of ``ELSEWHERE``; what each has printed.

    ``names`` are words of the page in other words. ``before`` are preparations, by how a command
    begins; they may change ``names``.
    """

    def type_all(
        page: str,
        names: Mapping[str, str] | None = None,
        before: Mapping[str, Callable[[], object]] | None = None,
    ) -> list[str]:
        told, unused = [], set(before or {})
        for each in typed(ROOT / page):
            if each.line in ELSEWHERE:
                continue
            for start, prepare in (before or {}).items():
                if f"{each.program} {each.line.partition(' ')[2]}".startswith(start):
                    prepare()
                    unused.discard(start)
            words = []
            for word in each.words:
                for name, own in (names or {}).items():
                    word = word.replace(name, own)
                words.append(word)
            told.append(_run(each.program, words, monkeypatch))
        assert not unused, f"{page} has no such command: {unused}"
        return told

    return type_all


def _run(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if program == "acme":
        done = CliRunner().invoke(app, words, input="w3 w4\n")
        assert done.exit_code == 0, f"{words}: {done.output}"
        return done.output
    if program == "acme-runtime":
        assert main(words) == 0, words
    elif program == "cp":
        shutil.copy(*words)
    elif program == "export":
        name, _, value = words[0].partition("=")
        monkeypatch.setenv(name, value)
    else:
        raise AssertionError(f"{program}: a test does not type this; ELSEWHERE says who does")
    return ""


def _photos(folder: Path, each: int) -> None:
    """Digits as image files, in a folder for each class."""
    raw = read_digits()
    for label in range(10):
        own = folder / str(label)
        own.mkdir(parents=True)
        for number, image in enumerate(raw.items[raw.labels == label][:each]):
            Image.fromarray(image).save(own / f"{number}.png")


def _small(path: str, device: str = "cam-1") -> None:
    """A fleet file in the place of the one that was written, whose run takes seconds."""
    settings = tiny(**SHORT).model_dump(mode="json")
    settings["clusters"][0]["devices"][0]["name"] = device
    Path(path).write_text(Fleet.parse(settings).to_yaml())


def test_every_page_with_commands_is_typed():
    pages = {page.relative_to(ROOT).as_posix(): typed(page) for page in PAGES}
    left = {n for n, commands in pages.items() if any(c.line not in ELSEWHERE for c in commands)}
    assert left == _TYPED
    shown = {command.line for commands in pages.values() for command in commands}
    assert set(ELSEWHERE) <= shown, "no page shows it any more"
    for reason in ELSEWHERE.values():
        for path in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / path).exists(), reason


@_types("README.md")
def test_readme(here: Path, type_page: Page, plain_backbone: Callable[..., PreTrainedModel]):
    """A folder of a checkpoint's name goes before the hub."""
    write_artifact(here / "runs/demo/artifacts/badge-1", "images")
    plain_backbone("vit").save_pretrained("facebook/dinov2-small")
    _photos(here / "photos", 24)
    _, _, checked, *_ = type_page("README.md", before={"acme check": lambda: _small("fleet.yaml")})
    assert "a run takes about" in checked


@_types("docs/guide.md")
def test_guide(here: Path, type_page: Page, plain_backbone: Callable[..., PreTrainedModel]):
    _photos(here / "photos", 15)
    _photos(here / "data/june", 8)
    shutil.copy(ROOT / "docs/digit.png", "a.png")
    speaker = here / "runs/mine/devices/speaker-2"

    def one_leaves() -> None:
        shutil.rmtree(speaker)
        fleet = yaml.safe_load(Path("runs/mine/fleet.yaml").read_text())
        del fleet["clusters"][1]["devices"][1]
        Path("new.yaml").write_text(yaml.safe_dump(fleet))

    def with_checkpoint() -> None:
        plain_backbone("vit").save_pretrained("plain")
        fleet = tiny(**SHORT).model_dump(mode="json")
        fleet["reference"] = {"checkpoint": "plain", "training": {"epochs": 1}}
        Path("fleet.yaml").write_text(Fleet.parse(fleet).to_yaml())

    before = {
        "acme check fleet.yaml": lambda: _small("fleet.yaml"),
        "acme predict runs/mine/devices/speaker-2": lambda: shipped_folder(
            plain_backbone("bert"), "int8", "first", speaker
        ),
        "acme update": one_leaves,
        "acme reference": with_checkpoint,
    }
    type_page("docs/guide.md", before=before)
    assert Path("models/mine/config.json").exists()


@_types("docs/your_model_and_data.md")
def test_your_model_and_data(
    here: Path, type_page: Page, plain_backbone: Callable[..., PreTrainedModel]
):
    plain_backbone("vit").save_pretrained("models/dinov2")
    _photos(here / "photos", 60)
    before = {"acme check": lambda: _small("mine.yaml")}
    type_page("docs/your_model_and_data.md", before=before)
    assert Path("runs/mine/summary.json").exists()


@pytest.mark.slow
@_types("docs/one_board_to_many_sites.md")
def test_one_board(
    here: Path,
    type_page: Page,
    plain_backbone: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
):
    """So tiny a model's times are noise."""
    monkeypatch.setattr("acme_fleet.profiling.fit.check_fit", lambda _: None)
    plain_backbone("vit", layers=1).save_pretrained("models/vit")
    _photos(here / "photos", 24)
    before = {"acme check": lambda: _small("one.yaml", "pi-1")}
    type_page("docs/one_board_to_many_sites.md", before=before)
    assert Path("runs/one/artifacts/pi-1/manifest.json").exists()


@pytest.mark.slow
@_types("docs/costs.md")
def test_costs(
    here: Path,
    finished: Any,
    type_page: Page,
    plain_backbone: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("acme_fleet.profiling.fit.check_fit", lambda _: None)
    monkeypatch.setattr("acme_fleet.cost.power.ThermalDesignPower.least_s", 0.01)
    plain_backbone("vit", layers=1).save_pretrained("path/to/vit-tiny")
    shutil.copytree(finished.path, "runs/demo")
    *_, one, whole = type_page("docs/costs.md")
    assert "badge-2" in one
    assert "cam-1" in whole


@_types("docs/live.md")
def test_live(here: Path, finished: Any, type_page: Page):
    shutil.copytree(finished.path, "runs/mine")
    type_page("docs/live.md")


@_types("docs/deploy.md")
def test_deploy(here: Path, finished: Any, type_page: Page):
    shutil.copytree(finished.path, "runs/mine")
    _photos(here / "photos", 1)
    type_page("docs/deploy.md", {"ARTIFACT": "runs/mine/artifacts/cam-1"})


@_types("docs/delivery.md")
def test_delivery(here: Path, type_page: Page):
    """Releases of a small artifact; what `acme export` makes of a run has tests of its own."""

    def exported(precision: str) -> None:
        place = here / "runs/mine/artifacts/cam-1"
        write_artifact(place, "images", name="cam-1", precision=precision)

    def released(precision: str) -> None:
        exported(precision)
        assert CliRunner().invoke(app, ["publish", "runs/mine", "--to", "site"]).exit_code == 0

    def newer() -> None:
        released("float16")
        assert main(["pull", "--from", "site", "--device", "cam-1", "--to", "models"]) == 0

    def devices_know() -> None:
        if "FINGERPRINT" not in names:
            told = CliRunner().invoke(app, ["keys", "show"]).output
            names["FINGERPRINT"] = told.split()[1]

    exported("float32")
    names = {
        "https://example.org/site": "site",
        "/srv/site": "site",
        "/etc/acme/publisher": "publisher",
        "/var/lib/acme/models": "models",
        "fleet.db": f"sqlite:///{here / 'fleet.db'}",
    }
    before = {
        "acme-runtime pull": devices_know,
        "acme-runtime rollback": newer,
        "acme fleet list": lambda: released("int8"),
        "acme fleet diff": lambda: released("int4"),
    }
    type_page("docs/delivery.md", names, before)
    assert Path("bundles/cam-1.zip").exists()


@_types("docs/updates.md")
def test_updates(here: Path, finished: Any, type_page: Page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts, "find_spec", lambda _: True)
    shutil.copytree(finished.path, "runs/mine")
    _photos(here / "data/june", 8)
    _photos(here / "data/cam-9", 12)

    def one_joins() -> None:
        shutil.rmtree("runs/mine-2", ignore_errors=True)
        if Path("new.yaml").exists():
            fleet = yaml.safe_load(Path("new.yaml").read_text())
            joiner = {"name": "cam-9", "storage": "80 kB", "data": "data/cam-9"}
            if joiner not in fleet["clusters"][0]["devices"]:
                fleet["clusters"][0]["devices"].append(joiner)
            for name in ("new.yaml", "fleet.yaml"):
                Path(name).write_text(yaml.safe_dump(fleet))

    names = {"STATE/runs/RUN": "runs/mine-2", "postgresql://…": f"sqlite:///{here / 'fleet.db'}"}
    type_page("docs/updates.md", names, {"acme update": one_joins})
    assert Path("fleet.db").exists()


@_types("docs/network.md")
def test_network(here: Path, type_page: Page, monkeypatch: pytest.MonkeyPatch):
    """With the page's site file; Flower is not started."""
    monkeypatch.setattr(hosts, "find_spec", lambda _: True)
    (site,) = (b for _, b in BLOCK.findall((ROOT / "docs/network.md").read_text()) if "role:" in b)

    def write_site() -> None:
        keys = here / "keys/north"
        text = site.replace("/etc/acme/keys", str(keys)).replace("/var/lib", str(here))
        Path("north.yaml").write_text(text)
        fleet = tiny().model_dump(mode="json")
        del fleet["clusters"][0]["devices"][1]
        Path("fleet.yaml").write_text(yaml.safe_dump(fleet))
        shutil.copy("keys/ca.crt", keys)
        (keys / "peers").mkdir(exist_ok=True)
        shutil.copy("keys/cam-1/node.pub", keys / "peers/cam-1.pub")
        (here / "acme").mkdir(mode=0o700)
        if os.getuid() == 0:  # root's are refused
            for path in (keys, *keys.rglob("*"), here / "acme"):
                os.chown(path, 54321, 54321)

    names = {"/etc/acme/": f"{here}/"}
    *_, unit = type_page("docs/network.md", names, {"acme up": write_site})
    assert "[Service]" in unit


@pytest.mark.slow
@_types("docs/generation.md")
def test_generation(here: Path, type_page: Page):
    """The run is of a tiny decoder; its first device is the page's watch."""
    rows = written_rows(here / "train.jsonl", 120, answers=False)
    settings = language_settings(rows, bytewise_decoder(here / "llama"))
    settings["data"]["max_tokens"] = 40
    for device, name in zip(
        settings["clusters"][0]["devices"], ("watch-3", "watch-4"), strict=True
    ):
        device |= {"name": name, "storage": "90 kB"}
    Path("prompts.txt").write_text("what is\nturn light\n")
    before = {
        "acme predict runs/tiny-assistants/devices": lambda: (
            Path("runs/tiny-assistants").exists()
            or customize(Fleet.parse(settings), Path("runs/tiny-assistants"))
        )
    }
    type_page("docs/generation.md", before=before)
    assert Path("runs/llama/model.safetensors").exists()


@_types("docs/stratos.md")
def test_stratos(here: Path, type_page: Page):
    """The example of `init`, and a tiny one in its place where models are needed."""
    taught_by = teacher(here / "teacher")

    def tiny_one() -> None:
        shutil.move("tasks", "example")
        task(here / "tasks", taught_by, coverage={"questions": 4}).rename("tasks/sums.yaml")

    def example_again() -> None:
        shutil.move("tasks", "tiny")
        shutil.move("example", "tasks")
        rows = map(json.loads, Path("tasks/train.jsonl").read_text().splitlines())
        replies = [{"question": row["question"], "reply": str(row["answer"])} for row in rows]
        Path("replies.jsonl").write_text("\n".join(map(json.dumps, replies)))

    def tiny_again() -> None:
        shutil.move("tasks", "example")
        shutil.move("tiny", "tasks")

    before = {
        "acme distill ask": tiny_one,
        "acme distill keep": example_again,
        "acme distill run": tiny_again,
    }
    type_page("docs/stratos.md", {"NAME": "tiny"}, before)
    assert len(Path("made.jsonl").read_text().splitlines()) == 1000


@pytest.mark.slow
@_types("examples/README.md")
def test_examples(here: Path, type_page: Page):
    shutil.copytree(ROOT / "examples", here / "examples")
    subprocess.run([sys.executable, "examples/made.py"], check=True)
    type_page("examples/README.md")
