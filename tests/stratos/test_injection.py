"""Data from known answers: none twice, none held out, each checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.errors import FleetError
from acme_fleet.stratos.example_files import write_example
from acme_fleet.stratos.injection import Made, make_data, write_data
from acme_fleet.stratos.questions import Question, normalised, read_questions
from acme_fleet.stratos.request import Request


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    write_example(path)
    return path


def made(task: Path, count: int, body: str | None = None, held_out: Sequence[str] = ()) -> Made:
    request = Request.from_yaml(task)
    if body is not None:
        (task.parent / "sums.py").write_text(f"def make(seed):\n    {body}\n")
    held = [Question(text, "1", "here") for text in held_out]
    return make_data(request, count, held)


def test_the_example_makes_sums_with_their_steps(task: Path):
    held_out = read_questions(Request.from_yaml(task).data).test
    told = []
    found = make_data(Request.from_yaml(task), 200, held_out, lambda *stage: told.append(stage))
    questions = [normalised(row["question"]) for row in found.rows]
    assert len(set(questions)) == len(questions) == 200
    assert not {normalised(question.text) for question in held_out} & set(questions)
    first, second = (int(word) for word in questions[0].split() if word.isdigit())
    assert found.rows[0]["answer"] == str(first + second)
    assert found.rows[0]["reply"].endswith(f"together {first + second}")
    assert told[-1] == (200, 200)
    assert make_data(Request.from_yaml(task), 200, held_out) == found


def test_what_comes_again_or_is_held_out_is_left_out(task: Path):
    body = "n = seed % 3; return {'question': f'Say {n}', 'answer': n, 'reply': f'{n}'}"
    found = made(task, 2, body, ["say 1?"])
    assert sorted(row["answer"] for row in found.rows) == ["0", "2"]
    with pytest.raises(FleetError, match=r"2 different questions came of 60 tries, 3 are wanted: "):
        made(task, 3, body, ["say 1?"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "return {'question': 'q', 'answer': 2, 'reply': '3'}",
            "rejects its own reply to 'q'",
        ),
        ("return {'question': 'q', 'answer': 2}", "must return a dictionary of question, answer"),
        ("return 3", "must return a dictionary of .* and returned 3"),
        ("return {'question': ' ', 'answer': 2, 'reply': '2'}", "'question' is ' ' with the seed"),
        (
            "return {'question': 'q', 'answer': True, 'reply': '2'}",
            "'answer' is True with",
        ),
        ("raise ValueError('no tiles')", "program: make of .* failed with the seed .*: no tiles"),
        ("return {seed}", "it failed with the seed .*: TypeError"),
    ],
)
def test_a_wrong_program_is_explained(task: Path, body: str, words: str):
    with pytest.raises(FleetError, match=words):
        made(task, 2, body)


def test_files_are_not_overwritten(task: Path):
    with pytest.raises(FleetError, match="exists already"):
        write_data([], task)


def test_without_a_program_nothing_is_made(task: Path):
    request = Request.from_yaml(task).model_copy(update={"program": None})
    with pytest.raises(FleetError, match="program: is missing"):
        make_data(request, 1, [])


def test_the_command(task: Path):
    out = task.parent / "made.jsonl"
    arguments = ["distill", "inject", str(task), "--out", str(out), "--count", "30"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 30
    assert {tuple(row) for row in rows} == {("question", "answer", "reply")}
    assert CliRunner().invoke(app, arguments).exit_code == 2
