"""Stories of Stratos, from end to end with a teacher of 0.3 million parameters."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from acme_research.frame.bench import Bench, Options
from acme_research.frame.classroom import Classroom, Program
from acme_research.frame.story import run
from acme_research.stories import module_of, stratos_switch, stratos_words


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stories share their teacher."""
    return tmp_path_factory.mktemp("pieces")


def result_of(name: str, pieces: Path, results: Path) -> dict[str, Any]:
    story = importlib.import_module(f"acme_research.stories.{module_of(name)}").STORY
    assert story.name == name
    result = run(story, Options("smoke", 1, None, pieces, results))
    assert (results / f"{name}-smoke.svg").stat().st_size > 1000
    assert result["headline"]
    assert {*map(type, (goal["met"] for goal in result["goals"]))} == {bool}
    return result


@pytest.mark.slow
def test_mahjong_is_injected_and_replay_keeps_what_is_covered(pieces: Path, tmp_path: Path):
    pytest.importorskip("mahjong", reason="pip install mahjong")
    row = result_of("stratos-mahjong", pieces, tmp_path)["seeds"][0]
    assert row["strategy"]["hands"]["strategy"] == "injection"
    assert row["strategy"]["known"]["strategy"] == "alignment"
    covered = {name: each["marks"]["known"]["share"] for name, each in row["students"].items()}
    assert min(row["teacher"]["known"]["share"], covered["replay alone"]) >= 0.95
    assert covered["injection and replay"] >= 0.7
    assert covered["injection alone"] <= 0.5
    summary = row["students"]["injection and replay"]["summary"]
    assert summary["validation"]["student"] < 0.3 * summary["validation"]["start"]
    assert summary["texts"]["made"] == 240


def test_words_are_learned_from_what_the_teacher_knows(pieces: Path, tmp_path: Path):
    row = result_of("stratos-words", pieces, tmp_path)["seeds"][0]
    assert 0.2 < row["coverage"]["right"] / row["coverage"]["asked"] < 1.0
    texts = {name: each["summary"]["texts"] for name, each in row["students"].items()}
    assert texts["injection"] == {"replies": 0, "made": 150, "replay": 0}
    assert 0 < texts["alignment"]["replies"] <= 150
    assert texts["alignment"]["made"] == 0


@pytest.mark.slow  # 13 students
def test_the_switch_follows_coverage(pieces: Path, tmp_path: Path):
    result = result_of("stratos-switch", pieces, tmp_path)
    row = result["seeds"][0]
    strategies = {name: each["coverage"]["strategy"] for name, each in row.items()}
    assert len(strategies) == 6
    assert strategies["first"] == strategies["last"] == "alignment"
    assert "alignment" not in (strategies["after"], strategies["before"])
    for name, each in row.items():
        assert {"alignment", "injection", strategies[name]} == {*each["students"]}
        told = result["numbers"][name]["switch"]["mean"]
        assert told == each["students"][strategies[name]]["share"]
    assert row["after"]["students"]["alignment"]["share"] < 0.5
    assert row["after"]["students"][strategies["after"]]["share"] > 0.7


def test_a_strategy_that_has_nothing_to_learn_from_leaves_the_student_as_it_began(
    pieces: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(Options("smoke", 1, None, pieces / "nothing", pieces), 0, "stratos-switch")
    monkeypatch.setattr(stratos_switch, "request_of", lambda room, name: None)
    monkeypatch.setattr(Classroom, "kept", lambda *_: None)
    monkeypatch.setattr(stratos_switch, "start_of", lambda *_: 0.25)
    found = stratos_switch.student(bench, "before", "alignment")
    assert (found["share"], found["learned"]) == (0.25, 0)


def test_questions_of_a_program_never_come_twice():
    first, second = Program("letters.py", "after").take(0, 300, 300)
    assert len({row["question"] for row in first + second}) == 600
    assert first == Program("letters.py", "after").take(0, 300)[0]


def test_problems_of_the_data_sets_are_read():
    rows = {
        "ASDiv": {"body": "Ann has two cats.", "question": "How many?", "answer": "2 (cats)"},
        "SVAMP": {"Body": "Ann has 2 cats", "Question": "How many?", "Answer": 2.0},
        "GSM8K": {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    }
    for name, row in rows.items():
        assert stratos_words.SETS[name][1](row)["answer"] == "2"
    assert stratos_words.SETS["SVAMP"][1](rows["SVAMP"])["question"] == "Ann has 2 cats. How many?"
