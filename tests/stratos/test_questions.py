"""Labelled questions; held-out ones are not learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.errors import FleetError
from acme_fleet.stratos.questions import QuestionSets, normalised, read_questions
from acme_fleet.stratos.request import Questions


def written(path: Path, rows: list[tuple[Any, Any]]) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def read(tmp_path: Path, train: list[Any], test: list[Any]) -> QuestionSets:
    data = Questions(
        train=written(tmp_path / "train.jsonl", train), test=written(tmp_path / "test.jsonl", test)
    )
    return read_questions(data)


def test_questions_are_read_with_their_places(tmp_path: Path):
    found = read(tmp_path, [("1 + 1?", 2), ("1 + 2?", "3")], [("2 + 2?", 4.0)])
    assert [(q.text, q.answer) for q in found.train] == [("1 + 1?", "2"), ("1 + 2?", "3")]
    assert found.test[0].answer == "4.0"
    assert found.train[1].place.endswith("train.jsonl, line 2")


@pytest.mark.parametrize("leaked", ["What is 1 + 1?", "what  is 1 + 1", "ｗhat is 1 + 1 ?!"])
def test_a_held_out_question_among_those_to_learn_from_is_refused(tmp_path: Path, leaked: str):
    with pytest.raises(FleetError, match=r"1 of 2 held-out .* data\.test: .*line 2 is .*line 1"):
        read(tmp_path, [("What is 1 + 1?", 2)], [("What is 3 + 1?", 4), (leaked, 2)])


def test_numbers_and_signs_make_another_question():
    assert normalised("What is 1 + 1?") != normalised("What is 1 − 1?")
    assert normalised("What is 1 + 1?") != normalised("What is 1 + 11?")
    assert normalised("Is A, B?") == normalised("is a b")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("", 1)], "'question' is empty"),
        ([("a", None)], "'answer' must be a text or a number"),
        ([("a", True)], "'answer' must be a text or a number"),
        ([(3, 1)], "'question' is 3, no text"),
        (
            [("a", 1), ("A?", 2)],
            "line 2 asks what .*line 1 asks, with another answer: '2' in place",
        ),
        ([], "has no questions"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, rows: list[Any], words: str):
    with pytest.raises(FleetError, match=words):
        read(tmp_path, rows, [("z", 1)])


def test_a_missing_key_is_named(tmp_path: Path):
    path = written(tmp_path / "a.jsonl", [("a", 1)])
    with pytest.raises(FleetError, match="line 1 lacks prompt; it has question, answer"):
        read_questions(Questions(train=path, test=path, question="prompt"))
