"""The right replies of a teacher as data to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.errors import FleetError
from acme_fleet.stratos.example_files import write_example
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.replies import learnable, read_replies
from acme_fleet.stratos.request import Request


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    write_example(path)
    return path


def replied(task: Path, *right: bool) -> Path:
    questions = read_questions(Request.from_yaml(task).data).train
    path = task.parent / "replies.jsonl"
    rows = [
        {"question": question.text, "reply": f"It is {question.answer if own else '-1'}"}
        for question, own in zip(questions, right, strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_right_replies_become_data(task: Path):
    path, out = replied(task, True, False, True), task.parent / "data.jsonl"
    told = CliRunner().invoke(app, ["distill", "keep", str(task), str(path), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert "2 of 3 replies of the teacher, the right ones" in told.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    questions = read_questions(Request.from_yaml(task).data).train
    assert [row["question"] for row in rows] == [questions[0].text, questions[2].text]
    assert all(row["reply"].endswith(row["answer"]) for row in rows)
    again = CliRunner().invoke(app, ["distill", "keep", str(task), str(path), "--out", str(out)])
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)


def test_without_a_right_reply_there_is_nothing_to_learn(task: Path):
    request = Request.from_yaml(task)
    train = read_questions(request.data).train
    replies, explained = read_replies(request, train, replied(task, False, False))
    assert not explained
    with pytest.raises(FleetError, match="accepts none of 2 replies"):
        learnable(request, replies)
