"""Every snippet of Python in README and docs runs, where what it names is there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from acme_fleet.data.samples import Samples
from acme_fleet.messages.header_plan import Block, Genotype
from tiny_artifact import write_artifact, write_speaker
from tiny_device import shipped_folder
from tiny_fleet import SHORT, tiny
from tiny_language import bytewise_decoder, writer_folder

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ELSEWHERE = {"from openai import OpenAI": "test_completions: it needs a server that runs"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fleet file and a photo, and what the README's snippet leaves there."""
    folder = tmp_path_factory.mktemp("clone")
    with chdir(folder):
        Path("fleet.yaml").write_text(tiny(**SHORT).to_yaml())
        Image.open(_ROOT / "docs/digit.png").convert("L").save("photo.jpg")
        names = _run("README.md", {})
    assert isinstance(names["model"], torch.nn.Module)
    return folder


def _run(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's snippets one after the other; the names that they leave."""
    blocks = _BLOCK.findall((_ROOT / page).read_text())
    assert blocks, f"{page} has no snippet"
    for block in blocks:
        if block.splitlines()[0] not in _ELSEWHERE:
            exec(compile(block, page, "exec"), names)
    return names


def test_pages_with_snippets_are_all_here():
    pages = {p for p in (_ROOT / "docs").glob("*.md") if _BLOCK.search(p.read_text())}
    assert {page.stem for page in pages} == {"backbones", "deploy", "generation", "guide"}


def test_guide_after_readme(clone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(clone)
    blocks = _BLOCK.findall((_ROOT / "docs/guide.md").read_text())
    given = {"array": np.zeros((8, 8), np.uint8), "images": torch.zeros(2, 1, 8, 8)}
    exec(compile(blocks[0], "guide.md", "exec"), given)
    assert given["logits"].shape == (2, 10)
    shutil.rmtree("runs/tiny")  # which the next one makes again
    exec(compile(blocks[1], "guide.md", "exec"), given)


def test_backbones(
    here: Path,
    plain_backbone: Callable[..., PreTrainedModel],
    make_samples: Callable[..., Samples],
):
    plain_backbone("vit", 8).save_pretrained("path/to/vit-base-patch16-224")
    folder = shipped_folder(plain_backbone("vit"), "int8", "first", here / "device")
    names = _run("docs/backbones.md", {"samples": make_samples(40), "folder": str(folder)})
    assert len(names["small"].config.heads_per_layer) == 6
    assert names["model"].config.model_type == "acme_image_classifier"


def test_deploy(here: Path):
    Image.new("L", (8, 8)).save("photo.jpg")
    write_artifact(here / "runs/mine/artifacts/cam-1", "images")
    write_speaker(here / "runs/mine/artifacts/helper-1")
    shutil.copy("runs/mine/artifacts/cam-1/model.onnx", "model.onnx")
    names = _run("docs/deploy.md", {"onnxruntime": onnxruntime})
    assert names["session"].get_inputs()[0].name == "pixels"
    assert names["answer"].best


def test_generation(here: Path, capsys: pytest.CaptureFixture[str]):
    block = Block(inputs=(0, 1), operations=("conv3", "downsample"))
    header = Genotype(blocks=(block,), cells=1, channels=4)
    place = here / "runs/tiny-assistants/devices/watch-3"
    writer_folder(bytewise_decoder(here / "llama"), place, header)
    _run("docs/generation.md", {})
    assert capsys.readouterr().out.startswith("<s>what is")
