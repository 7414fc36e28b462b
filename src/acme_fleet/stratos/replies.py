"""Files of a teacher's replies, and the right ones among them as data to learn from."""

from __future__ import annotations

from pathlib import Path

from acme_fleet.data.sources.files import require_columns
from acme_fleet.data.text import json_lines, json_object, text_of
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line
from acme_fleet.stratos.checkers import Reply, right_replies
from acme_fleet.stratos.questions import Question, normalised
from acme_fleet.stratos.request import Request

REPLY, EXPLAINED = "reply", "explained"
"""Keys of a reply, and of the mark that the teacher was shown the answer."""


def read_replies(request: Request, train: list[Question], path: Path) -> tuple[list[Reply], bool]:
    """A teacher's replies, and true if it was shown the answers.

    Args:
        request: the task. train: labelled questions to learn from.
        path: JSON Lines with the question's key and ``reply``, each question once.

    Raises:
        FleetError: naming the line that is no reply, or one to no question of the task or to one
            twice.
    """
    known = {normalised(question.text): question for question in train}
    found: dict[str, Reply] = {}
    explained, key = False, request.data.question
    for place, line in json_lines(path, "replies"):
        row = json_object(line, place)
        require_columns([key, REPLY], list(row), place)
        text = text_of(row, key, place)
        same = normalised(text)
        if same not in known:
            raise FleetError(f"{place}: {one_line(text, 60)!r} is no question of data.train")
        if same in found:
            raise FleetError(f"{place}: {one_line(text, 60)!r} is answered twice")
        if not isinstance(row[REPLY], str):
            raise FleetError(f"{place}: {REPLY!r} must be a text")
        found[same] = Reply(known[same], row[REPLY])
        explained |= bool(row.get(EXPLAINED))
    return list(found.values()), explained


def learnable(request: Request, replies: list[Reply]) -> list[dict[str, str]]:
    """The right replies with their questions and answers, by the task's keys.

    Raises:
        FleetError: if none is right, or the checker fails.
    """
    kept = right_replies(request.checker, replies)
    if not kept:
        raise FleetError(f"the checker accepts none of {len(replies)} replies: nothing to learn")
    data = request.data
    return [
        {data.question: own.question.text, data.answer: own.question.answer, REPLY: own.text}
        for own in kept
    ]
