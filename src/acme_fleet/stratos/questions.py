"""Labelled questions, and the check that no held-out question is among those to learn from."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acme_fleet.data.sources.files import require_columns
from acme_fleet.data.text import json_lines, json_object, text_of
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line
from acme_fleet.stratos.request import Questions

_SHOWN = 3


@dataclass(frozen=True)
class Question:
    """One question with its right answer, and the line that it is from."""

    text: str
    answer: str
    place: str


@dataclass(frozen=True)
class QuestionSets:
    """Questions to learn from, and held-out ones."""

    train: list[Question]
    test: list[Question]


def read_questions(data: Questions) -> QuestionSets:
    """Read both files.

    Raises:
        FleetError: naming the line that is wrong, or if a held-out question is among those to
            learn from, or asked twice with different answers.
    """
    train = _read(data.train, data, "data.train")
    test = _read(data.test, data, "data.test")
    for questions in (train, test):
        _check_answers(questions)
    check_leakage(train, test)
    return QuestionSets(train, test)


def normalised(text: str) -> str:
    """A question without what does not change it: case, spaces, forms of one character, marks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(letter) == "Po" else letter for letter in folded)
    return " ".join(kept.split())


def check_leakage(train: Sequence[Question], test: Sequence[Question]) -> None:
    """Refuse held-out questions that are also learned from, up to :func:`normalised`.

    Raises:
        FleetError: with their number and the first ones.
    """
    learned = {normalised(question.text): question for question in train}
    leaked = [
        (question, learned[key])
        for question in test
        if (key := normalised(question.text)) in learned
    ]
    if leaked:
        shown = "; ".join(
            f"{own.place} is {other.place}: {one_line(own.text, 60)!r}"
            for own, other in leaked[:_SHOWN]
        )
        raise FleetError(
            f"{len(leaked)} of {len(test)} held-out questions are among those to learn from, which "
            f"would make any accuracy meaningless; remove them from data.train: {shown}"
        )


def _read(path: Path, data: Questions, where: str) -> list[Question]:
    questions = []
    for place, line in json_lines(path, where):
        row = json_object(line, place)
        require_columns([data.question, data.answer], list(row), place)
        answer = row[data.answer]
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise FleetError(f"{place}: {data.answer!r} must be a text or a number")
        questions.append(Question(text_of(row, data.question, place), str(answer), place))
    if not questions:
        raise FleetError(f"{where}: {path} has no questions")
    return questions


def _check_answers(questions: Sequence[Question]) -> None:
    first: dict[str, Question] = {}
    for question in questions:
        same = first.setdefault(normalised(question.text), question)
        if same.answer != question.answer:
            raise FleetError(
                f"{question.place} asks what {same.place} asks, with another answer: "
                f"{one_line(question.answer, 60)!r} in place of {one_line(same.answer, 60)!r}"
            )
