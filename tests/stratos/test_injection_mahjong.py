"""The Mahjong example: its solver, program and checker agree, and a hand is never held out."""

from __future__ import annotations

import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from acme_fleet.stratos.checkers import try_checker
from acme_fleet.stratos.injection import make_data
from acme_fleet.stratos.questions import normalised, read_questions
from acme_fleet.stratos.request import Request

pytest.importorskip("mahjong", reason="pip install mahjong")
_EXAMPLE = Path(__file__).parents[2] / "examples" / "mahjong_waits.py"


def test_hands_by_hand():
    example = runpy.run_path(str(_EXAMPLE))
    hand = [0] * 34
    for tile in (0, 1, 2, 9, 10, 11, 18, 19, 20, 27, 27, 3, 4):  # 123m 123p 123s 11z 45m
        hand[tile] += 1
    assert [example["_name"](tile) for tile in example["_waits"](hand)] == ["3m", "6m"]
    assert example["check"]("q", "3m 6m", "45m: 3 345. Tiles: 6m and 3m")
    assert example["check"]("q", "3m 6m", "Tiles: 36m")
    assert not example["check"]("q", "3m 6m", "Tiles: 3m")
    assert not example["check"]("q", "3m 6m", "")
    pairs = [0, 2, 2, 2, 0, 0, 0, 0, 0] + [2, 2, 2] + 22 * [0]  # a seventh pair is no way to end
    pairs[30] = 1
    assert [example["_name"](tile) for tile in example["_waits"](pairs)] == ["4z"]


@pytest.mark.parametrize(("function", "count"), [("make", 13), ("make_four", 4)])
def test_steps_show_the_hand_with_each_tile_that_completes_it(function: str, count: int):
    example = runpy.run_path(str(_EXAMPLE))
    for seed in range(40):
        made = example[function](seed)
        tiles = expanded(made["question"].partition("hand ")[2])
        assert sum(tiles.values()) == count
        assert max(tiles.values()) <= 4
        assert example["check"](made["question"], made["answer"], made["reply"])
        steps, _, told = made["reply"].partition(" Tiles: ")
        assert told == made["answer"]
        for step in steps.split(". "):
            run, _, ways = step.removesuffix(".").partition(": ")
            for way in ways.split(", "):
                first, _, groups = way.partition(" ")
                own = expanded(groups.replace(" ", "") + run[-1])
                if f"{first}{run[-1]}" in told.split() and own:
                    own -= Counter([f"{first}{run[-1]}"])
                else:
                    own = expanded(way.replace(" ", "") + run[-1])
                assert own == expanded(run)


def expanded(hand: str) -> Counter[str]:
    """Tiles of a hand that is written by suits."""
    runs = re.findall(r"([1-9]+)([mpsz])", hand)
    return Counter(digit + suit for digits, suit in runs for digit in digits)


def test_from_the_script_to_checked_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [str(_EXAMPLE), str(tmp_path), "--questions", "15"])
    runpy.run_path(str(_EXAMPLE), run_name="__main__")
    request = Request.from_yaml(tmp_path / "task.yaml")
    questions = read_questions(request.data)
    assert (len(questions.train), len(questions.test)) == (15, 15)
    try_checker(request.checker, questions.train)
    made = make_data(request, 30, questions.test)
    held_out = {normalised(question.text) for question in questions.test}
    assert not held_out & {normalised(row["question"]) for row in made.rows}
