"""The strategy by the teacher's measured coverage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import FleetError
from acme_fleet.report.intervals import wilson
from acme_fleet.stratos.example_files import write_example
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.request import Coverage, Request
from acme_fleet.stratos.strategy import Covered, choose_strategy, measure_coverage


@pytest.mark.parametrize(
    ("right", "asked", "strategy"),
    [
        (90, 100, "alignment"),  # [.826, .945]
        (68, 100, "mixed"),  # [.583, .763]: alignment is not sure
        (10, 100, "injection"),  # [.055, .174]
        (15, 100, "mixed"),  # [.093, .233]
        (3, 3, "mixed"),  # three questions say little: [.438, 1]
        (0, 1, "mixed"),
    ],
)
def test_by_interval(right: int, asked: int, strategy: str):
    found = choose_strategy(right, asked, Coverage())
    assert found.strategy == strategy
    assert f"{right} of {asked} right" in found.reason


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 0.5), st.floats(0.51, 1))
def test_the_ends_of_the_interval_decide(asked: int, share: float, low: float, high: float):
    right = round(share * asked)
    found = choose_strategy(right, asked, Coverage(injection_to=low, alignment_from=high))
    ends = wilson(right / asked, asked)
    assert (found.strategy == "alignment") == (ends[0] >= high)
    assert (found.strategy == "injection") == (ends[1] <= low)


def test_impossible_counts_and_thresholds_are_refused():
    for right, asked in ((2, 1), (0, 0), (-1, 3)):
        with pytest.raises(ValueError, match="cannot be right"):
            choose_strategy(right, asked, Coverage())
    with pytest.raises(ValueError, match=r"injection_to 0\.5 must be smaller than alignment_from"):
        Coverage(injection_to=0.5, alignment_from=0.5)


def covered(tmp_path: Path, rows: list[dict[str, object]]) -> Covered:
    task, replies = tmp_path / "task.yaml", tmp_path / "replies.jsonl"
    if not task.exists():
        write_example(task)
    replies.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = Request.from_yaml(task)
    return measure_coverage(request, read_questions(request.data).train, replies)


def test_replies_are_marked_by_the_checker(tmp_path: Path):
    write_example(tmp_path / "task.yaml")
    questions = read_questions(Request.from_yaml(tmp_path / "task.yaml").data).train
    rows = [
        {"question": q.text, "reply": f"It is {q.answer}." if n % 2 else "I do not know"}
        for n, q in enumerate(questions)
    ]
    found = covered(tmp_path, rows)
    assert (found.right, found.asked, found.strategy) == (20, 40, "mixed")
    with pytest.raises(FleetError, match=r"replies to 39 questions, coverage\.questions is 40"):
        covered(tmp_path, rows[1:])
    with pytest.raises(FleetError, match=r"line 41: .* is answered twice"):
        covered(tmp_path, [*rows, rows[0]])
    with pytest.raises(FleetError, match=r"line 1: 'Who\?' is no question of data\.train"):
        covered(tmp_path, [{"question": "Who?", "reply": ""}])
    with pytest.raises(FleetError, match="'reply' must be a text"):
        covered(tmp_path, [rows[0] | {"reply": 3}])
