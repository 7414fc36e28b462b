"""Libraries that a command loads before it can answer: seconds, which a mistake must not cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acme_fleet.cli import EXAMPLE
from acme_fleet.data.sources.registry import SOURCES
from acme_fleet.distillation.importance import OBJECTIVES
from acme_fleet.edge.similarity import SIMILARITIES
from acme_fleet.inspection.quick import NAMES
from acme_fleet.personalization.rules import RULES
from acme_fleet.tasks.registry import TASKS

_HEAVY = ("torch", "transformers", "scipy", "sklearn", "ot", "datasets", "tokenizers")
_RUN = f"""
import sys
from acme_fleet.cli import app
from acme_fleet.failures import own_process
code = own_process(lambda: app(sys.argv[1:]))
sys.stderr.write("loaded:" + ",".join(name for name in {_HEAVY} if name in sys.modules))
sys.exit(code)
"""


def _loaded(*arguments: str | Path, code: int) -> tuple[str, str]:
    """The heavy libraries that a command loads in a process of its own, and what it says."""
    told = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, arguments)], capture_output=True, text=True
    )
    assert told.returncode == code, told.stderr
    said, _, loaded = told.stderr.rpartition("loaded:")
    return loaded, told.stdout + said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "widths:",
            "widhts:",
            "unknown key; remove it or correct its spelling; did you mean widths",
        ),
        ("task: classification", "task: ranking", "task: there is no 'ranking'; choose one of"),
        ("source: moved_digits", "source: images, train: nowhere", "data.train: "),
        ("# checkpoint: google", "checkpoint: ./nowhere #", "there is no such folder"),
        ("rounds: 3", "rounds: 3\n  mix: wieghts", "personalization.mix: there is no 'wieghts'"),
        ("seed: 0", "seed: zero", "seed"),
    ],
)
def test_a_mistake_in_a_fleet_file_is_told_before_torch(
    tmp_path: Path, old: str, new: str, said: str
):
    text = EXAMPLE.read_text()
    assert text.count(old) >= 1
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new.replace(", ", "\n  "), 1))
    loaded, told = _loaded("check", path, code=2)
    assert loaded == ""
    assert said in told


def test_a_run_tells_a_mistake_before_torch_too(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    elsewhere = "source: images\n  train: nowhere"
    path.write_text(EXAMPLE.read_text().replace("source: moved_digits", elsewhere))
    loaded, told = _loaded("run", path, code=2)
    assert loaded == ""
    assert "data.train: " in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--text", "nowhere.jsonl"), "--text: nowhere.jsonl: no such file"),
        (("--text", "HERE"), "--text: "),
        (("--images", "nowhere"), "--images: nowhere: no such file or folder"),
        (("--images", "HERE", "--checkpoint", "./nowhere"), "there is no such folder"),
        (("--images", "HERE", "--checkpoint", "HERE"), "it has no config.json"),
        (("--images", "HERE", "--devices", "toaster:2"), "there is no 'toaster'; choose one of"),
    ],
)
def test_a_mistake_in_the_options_of_init_is_told_before_torch(
    tmp_path: Path, options: tuple[str, ...], said: str
):
    placed = [str(tmp_path) if option == "HERE" else option for option in options]
    loaded, told = _loaded("init", tmp_path / "a.yaml", *placed, code=2)
    assert loaded == ""
    assert said in told
    assert not (tmp_path / "a.yaml").exists()


def test_a_run_in_a_used_folder_is_refused_before_torch(tmp_path: Path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    loaded, told = _loaded("run", EXAMPLE, "--out", tmp_path / "used", code=2)
    assert loaded == ""
    assert "is not an empty directory" in told


def test_help_a_new_file_and_the_version_load_nothing(tmp_path: Path):
    assert _loaded("--help", code=0)[0] == ""
    assert _loaded("init", tmp_path / "a.yaml", code=0)[0] == ""


def test_the_names_that_are_checked_early_are_those_of_the_registries():
    assert set(NAMES["task"]) == set(TASKS)
    assert set(NAMES["data.source"]) == set(SOURCES)
    assert set(NAMES["backbone.importance"]) == {"auto", *OBJECTIVES}
    assert set(NAMES["personalization.mix"]) == set(RULES)
    assert set(NAMES["personalization.similarity"]) == set(SIMILARITIES)
