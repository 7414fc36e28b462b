"""Checkers, and what keeps a broken one from doing harm."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from acme_fleet.errors import FleetError
from acme_fleet.stratos.checkers import Reply, judge_of, last_number, right_replies, try_checker
from acme_fleet.stratos.questions import Question
from acme_fleet.stratos.request import Checker, PythonChecker


def checker(**settings: Any) -> Any:
    return TypeAdapter(Checker).validate_python(settings)


def accepted(of: Any, answer: str, *replies: str) -> list[bool]:
    question = Question("q", answer, "a.jsonl, line 1")
    with judge_of(of) as judge:
        return [judge.accepts(Reply(question, reply)) for reply in replies]


def questions(*answers: str) -> list[Question]:
    return [Question(f"q{n}", a, f"a.jsonl, line {n}") for n, a in enumerate(answers, 1)]


def test_exact():
    assert accepted(checker(kind="exact"), "East wind", " east  Wind\n", "east", "") == [
        *(True, False, False)
    ]
    assert accepted(checker(kind="exact", ignore_case=False), "E", "e", "E") == [False, True]


def test_numeric():
    found = accepted(
        checker(kind="numeric"), "1,200", "so 3 and 4 make 1200.", "1200.5", "1200 or 7", "none"
    )
    assert found == [True, False, False, False]
    near = checker(kind="numeric", tolerance=0.01)
    assert accepted(near, "100", "101", "99", "101.1", "-100") == [True, True, False, False]
    with pytest.raises(FleetError, match="the answer 'seven' has no number"):
        accepted(checker(kind="numeric"), "seven", "7")


def test_last_number():
    assert last_number("a 1,234.50 b") == Decimal("1234.50")
    assert last_number("-3") == -3
    assert last_number("#### .5") == Decimal("0.5")
    assert last_number("words") is None


def test_pattern():
    of = checker(kind="pattern", pattern=r"answer is (\w+)")
    found = accepted(of, "b", "the answer is a. no, the answer is B", "b", "the answer is c")
    assert found == [True, False, False]
    for wrong, words in (("(", "no regular expression"), ("a", "has 0"), ("(a)(b)", "has 2")):
        with pytest.raises(ValueError, match=words):
            checker(kind="pattern", pattern=wrong)


def python(tmp_path: Path, body: str, seconds: float = 20.0) -> PythonChecker:
    path = tmp_path / "mine.py"
    path.write_text(f"import os, sys, time\ndef check(question, answer, reply):\n    {body}\n")
    return PythonChecker(kind="python", file=path, seconds=seconds)


def test_a_users_function_decides_in_a_process_of_its_own(tmp_path: Path):
    of = python(
        tmp_path, f"print('hello'); return answer in reply and os.getpid() != {os.getpid()}"
    )
    assert accepted(of, "ü2", "it is ü2", "3") == [True, False]
    try_checker(of, questions("1", "2"))
    replies = [Reply(q, r) for q, r in zip(questions("1", "2"), ("1", "1"), strict=True)]
    assert [reply.text for reply in right_replies(of, replies)] == ["1"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return False", "it rejects 2 of 2 right answers .* the first is '1' of a.jsonl, line 1"),
        ("return True", "it accepts an empty reply to 2 of 2 questions"),
        ("raise KeyError('tile')", "it failed at a.jsonl, line 1: KeyError: 'tile'"),
        ("return 1", "it returned 1 at a.jsonl, line 1, no bool"),
        ("print('no tiles', file=sys.stderr); os._exit(3)", "ended with code 3 at .*: no tiles"),
        ("os.kill(os.getpid(), 9)", "ended with code -9 at a.jsonl, line 1"),
        ("return nonsense", "NameError"),
    ],
)
def test_a_broken_function_is_explained(tmp_path: Path, body: str, words: str):
    with pytest.raises(FleetError, match=words):
        try_checker(python(tmp_path, body), questions("1", "2"))


def test_a_function_that_hangs_is_ended(tmp_path: Path):
    of = python(tmp_path, "os.fork(); time.sleep(600)", seconds=0.2)
    with pytest.raises(FleetError, match=r"no answer after 0\.2 s at a\.jsonl, line 1"):
        try_checker(of, questions("1"))


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        ("import nothing_like_this", "check", "while it was loaded: ModuleNotFoundError"),
        ("def other(): pass", "check", "while it was loaded: AttributeError"),
        ("def check(:", "check", "while it was loaded: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path: Path, text: str, function: str, words: str):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(FleetError, match=words):
        try_checker(PythonChecker(kind="python", file=path, function=function), questions("1"))


def test_a_missing_file_is_named(tmp_path: Path):
    of = PythonChecker(kind="python", file=tmp_path / "no.py")
    with pytest.raises(FleetError, match=r"no\.py: there is no such file"):
        try_checker(of, questions("1"))
