"""Checkers decide if a reply is right: exactly, by number, by pattern, or by a user's function."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Protocol

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line
from acme_fleet.stratos.questions import Question
from acme_fleet.stratos.request import (
    Checker,
    ExactChecker,
    NumericChecker,
    PatternChecker,
    PythonChecker,
)
from acme_fleet.stratos.user_process import UserProcess

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_TRIED = 20


@dataclass(frozen=True)
class Reply:
    """A model's reply to a question."""

    question: Question
    text: str


class Judge(Protocol):
    """Something that decides."""

    def accepts(self, reply: Reply) -> bool:
        """True if the reply is right."""
        ...


@contextmanager
def judge_of(checker: Checker) -> Iterator[Judge]:
    """The judge that a task's checker describes, while the block runs.

    Raises:
        FleetError: if a user's function cannot be loaded.
    """
    match checker:
        case ExactChecker():
            yield _Exact(checker.ignore_case)
        case NumericChecker():
            yield _Numeric(Decimal(str(checker.tolerance)))
        case PatternChecker():
            yield _Pattern(checker.pattern, checker.ignore_case)
        case PythonChecker():
            of = checker.file, checker.function, checker.seconds
            with UserProcess.started("checker", *of) as process:
                yield _Python(process)


def try_checker(checker: Checker, questions: Sequence[Question]) -> None:
    """Give a checker right answers and empty ones before anything depends on it.

    Of a pattern only the empty ones are tried: which reply it would find an answer in is not known.

    Args:
        checker: the task's. questions: with their answers; the first ones are tried.

    Raises:
        FleetError: if it rejects a right answer, accepts an empty one, crashes or hangs.
    """
    tried = questions[:_TRIED]
    with judge_of(checker) as judge:
        if not isinstance(checker, PatternChecker):
            wrong = [each for each in tried if not judge.accepts(Reply(each, each.answer))]
            if wrong:
                raise FleetError(
                    f"checker: it rejects {len(wrong)} of {len(tried)} right answers when they are "
                    f"the reply themselves; the first is {one_line(wrong[0].answer, 60)!r} of "
                    f"{wrong[0].place}: correct the checker or the answers"
                )
        empty = [each for each in tried if judge.accepts(Reply(each, ""))]
        if empty:
            raise FleetError(
                f"checker: it accepts an empty reply to {len(empty)} of {len(tried)} questions, "
                f"the first in {empty[0].place}: any accuracy would be meaningless"
            )


def right_replies(checker: Checker, replies: Sequence[Reply]) -> list[Reply]:
    """The replies that are right.

    Raises:
        FleetError: naming the question at which a user's function crashes or hangs.
    """
    with judge_of(checker) as judge:
        return [reply for reply in replies if judge.accepts(reply)]


@dataclass(frozen=True)
class _Exact:
    ignore_case: bool

    def accepts(self, reply: Reply) -> bool:
        return _same(reply.text, reply.question.answer, self.ignore_case)


def _same(text: str, answer: str, ignore_case: bool) -> bool:
    """Equal, spaces at the ends and runs of them aside."""
    first, second = (" ".join(each.split()) for each in (text, answer))
    return first.casefold() == second.casefold() if ignore_case else first == second


@dataclass(frozen=True)
class _Numeric:
    tolerance: Decimal

    def accepts(self, reply: Reply) -> bool:
        right, told = last_number(reply.question.answer), last_number(reply.text)
        if right is None:
            raise FleetError(
                f"checker: {reply.question.place}: the answer "
                f"{one_line(reply.question.answer, 60)!r} has no number; take another checker"
            )
        return told is not None and abs(told - right) <= self.tolerance * abs(right)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, commas between thousands left out."""
    found = _NUMBER.findall(text[-100_000:])
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:  # more digits than any answer has
        return None


@dataclass(frozen=True)
class _Pattern:
    pattern: str
    ignore_case: bool

    def accepts(self, reply: Reply) -> bool:
        found = re.findall(self.pattern, reply.text)
        return bool(found) and _same(found[-1], reply.question.answer, self.ignore_case)


@dataclass(frozen=True)
class _Python:
    process: UserProcess

    def accepts(self, reply: Reply) -> bool:
        question = reply.question
        where = f"at {question.place}"
        right = self.process.call((question.text, question.answer, reply.text), where)
        if not isinstance(right, bool):
            raise FleetError(
                f"{self.process.name}: it returned {one_line(repr(right), 60)} {where}, no bool"
            )
        return right
