"""``acme distill``: from an example to a plan, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app


def _acme(*arguments: str | Path) -> Any:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, ["distill", *words], env={"COLUMNS": "250"})


def _words(told: Any) -> str:
    return " ".join((told.output + told.stderr).replace("│", " ").split())


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    told = _acme("init", path)
    assert told.exit_code == 0, told.output
    assert f"acme distill plan {path}" in told.output
    pairs = tmp_path / "pairs.yaml"  # shapes of three layers are made quickly
    text = pairs.read_text().replace("layers: 30", "layers: 3").replace("layers: 24", "layers: 3")
    text = text.replace("[15, 20]", "[1, 2]").replace(", parameters: 134515008", "")
    pairs.write_text(text.replace(", parameters: 494032768", ""))
    return path


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_the_example_gives_a_plan(task: Path):
    told = _acme("plan", task)
    assert told.exit_code == 0, told.output
    words = _words(told)
    for expected in (
        "additions: 40 questions to learn from, 20 held out",
        "14 rows were read; 14 offers are left, with prices of 2026-01-01 in US dollars. 0 of them",
        "the best server for each pair",
        "not calibrated",
        "max_usd_per_hour 2 USD/h 36",
        "Accuracy is not known for every feasible pair",
    ):
        assert expected in words
    assert not list(task.parent.glob("runs*"))


def test_measured_accuracies_give_one_choice(task: Path):
    _change(task.parent / "pairs.yaml", "    # pilot:", "    pilot:")
    text = (task.parent / "pairs.yaml").read_text()
    (task.parent / "pairs.yaml").write_text(text.partition("cuts:")[0])
    words = _words(_acme("plan", task))
    assert "0.465 [0.397, 0.534] measured" in words
    assert "chosen" in words
    assert "accuracy first" in words


def test_an_accuracy_that_is_not_known_keeps_its_limit_and_is_said_to(task: Path):
    _change(task, "  # min_accuracy: 0.5 ", "  min_accuracy: 0.99 ")
    told = _acme("plan", task)
    assert told.exit_code == 0
    assert "min_accuracy is not decided for 6 of 6 pairs" in _words(told)


def test_init_changes_nothing_that_is_there(task: Path):
    told = _acme("init", task.parent / "other.yaml")
    assert told.exit_code == 2
    assert "machines.yaml" in told.stderr
    assert "there already; nothing was written" in told.stderr
    assert not (task.parent / "other.yaml").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_usd_per_hour: 2", "max_usd_per_hour: 0.01", "limits.max_usd_per_hour 0.12 USD/h in"),
        ("test: test.jsonl", "test: train.jsonl", "40 of 40 held-out questions are among those"),
        ("prompt_tokens: 64", "promt_tokens: 64", "did you mean prompt_tokens?"),
        ("kind: numeric, tolerance: 0.0", "kind: python, file: no.py", "there is no such file"),
        ("servers.csv", "nowhere.csv", "nowhere.csv: no such file or folder"),
        (
            "regions: []",
            "regions: [mars]",
            "regions: no server is in 'mars'; the price lists have ",
        ),
        ("distillation: auto", "distillation: guess", "distillation: Input should be 'auto'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(task: Path, old: str, new: str, words: str):
    _change(task, old, new)
    told = _acme("plan", task)
    assert told.exit_code == 2
    assert words in " ".join(told.stderr.split())
    assert "Traceback" not in told.output


def test_a_strategy_by_replies(task: Path):
    lines = (task.parent / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    replies = task.parent / "replies.jsonl"
    replies.write_text(
        "".join(
            json.dumps({"question": row["question"], "reply": f"That makes {row['answer']}"}) + "\n"
            for row in rows
        )
    )
    told = _acme("strategy", task, replies)
    assert told.exit_code == 0, told.stderr
    assert told.output.startswith("alignment: 40 of 40 right: 1.000 [0.912, 1.000].")
    replies.write_text("")
    told = _acme("strategy", task, replies)
    assert (told.exit_code, "replies to 0 questions" in told.stderr) == (2, True)


def test_a_probe_overwrites_nothing(task: Path):
    told = _acme("probe", "--out", task)
    assert told.exit_code == 2
    assert "exists already" in told.stderr
