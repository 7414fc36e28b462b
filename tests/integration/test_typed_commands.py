"""Commands that README and docs show, typed as they stand, one after the other.

`test_snippets.py` has the guide's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from transformers import PreTrainedModel
from typer.testing import CliRunner

from acme_fleet.api import customize
from acme_fleet.cli import app
from acme_fleet_runtime.cli import main
from tiny_artifact import write_artifact
from tiny_fleet import SHORT, tiny

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
_TYPED = re.compile(r"(?:export )?(?:\S+/)?(acme|acme-runtime|ACME_REGISTRY)[ =](.+?)(?: +#.*)?")
_RUNS_ON = {"serve", "ui"}  # until they are stopped: tests of both are elsewhere


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACME_REGISTRY", raising=False)
    Image.open(_ROOT / "docs/digit.png").convert("L").save("photo.jpg")
    return tmp_path


def _typed(page: str) -> Iterator[tuple[str, list[str]]]:
    """Program and words of a page's commands in their order, those of cron left out."""
    for block in _BLOCK.findall((_ROOT / page).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if found := _TYPED.fullmatch(line):
                yield found[1], shlex.split(found[2])


def _acme(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{words}: {done.output}"
    return done.output


def test_readme(here: Path, plain_backbone: Callable[..., PreTrainedModel]):
    """The demo's have a test of the wheel; a run is one of the tests' own fleet. A folder of a
    checkpoint's name goes before the hub."""
    plain_backbone("vit").save_pretrained("facebook/dinov2-small")
    for number in range(240):
        photo = here / f"photos/{number % 2}/{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(photo)
    done = []
    for program, words in _typed("README.md"):
        if program != "acme" or words[0] in _RUNS_ON or "runs/demo" in words:
            continue
        done.append(words[0])
        if words[0] == "check":
            Path("fleet.yaml").write_text(tiny(**SHORT).to_yaml())
        told = _acme(*words)
        assert ("a run takes about" in told) == (words[0] == "check")
    assert done == ["init", "check", "run", "explain", "predict"]


def test_delivery(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Releases of a small artifact; what `acme export` makes of a run has tests of its own."""

    def exported(precision: str) -> None:
        place = here / "runs/mine/artifacts/cam-1"
        write_artifact(place, "images", name="cam-1", precision=precision)

    def released(precision: str) -> None:
        exported(precision)
        _acme("publish", "runs/mine", "--to", "site")

    exported("float32")
    count, fingerprint = 0, ""
    for program, words in _typed("docs/delivery.md"):
        if program == "ACME_REGISTRY":
            monkeypatch.setenv(program, f"sqlite:///{here / words[0]}")
            continue
        count += 1
        if words[:2] == ["export", "runs/mine"]:
            exported("int8")
            continue
        if words == ["rollback", "models"]:
            released("float16")
            assert main(["pull", "--from", "site", "--device", "cam-1", "--to", "models"]) == 0
        if words[:2] == ["fleet", "diff"]:
            released("int4")
        known = {"https://example.org/site": "site", "FINGERPRINT": fingerprint}
        words = [known.get(word, word) for word in words]
        if program == "acme":
            _acme(*words)
        else:
            assert main(words) == 0, words
        fingerprint = fingerprint or _acme("keys", "show").split()[1]  # that devices know
    assert count == 16
    assert Path("bundles/cam-1.zip").exists()


@pytest.mark.slow
def test_deploy_and_updates(here: Path):
    """Exports and a publication of a run that was not updated; the guide's update is elsewhere."""
    customize(tiny(**SHORT), out="runs/mine", progress=False)
    for page, expected in (("deploy", ["export", "predict"]), ("updates", ["export", "publish"])):
        done = []
        for program, words in _typed(f"docs/{page}.md"):
            if program == "acme" and words[0] in expected:
                words = [word.replace("mine-2", "mine").replace("cam-9", "cam-2") for word in words]
                _acme(*words)
                done.append(words[0])
        assert done == expected
