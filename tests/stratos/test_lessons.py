"""Texts to learn: where each is from, and who teaches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_fleet.config.data import ABSENT
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.stratos.lessons import LEARNED, Text, lessons_of, read_texts
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.request import Request
from tiny_distillation import LETTERS, asked, lines, task, untrained


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    learning = {"replies": "replies.jsonl", "replay": "replay.jsonl", "replay_share": 0.2}
    path = task(tmp_path / "task", untrained(tmp_path / "teacher"), learning=learning)
    lines(asked("last", 20, 4), path.parent / "replies.jsonl")
    return Request.from_yaml(path)


@pytest.fixture
def preprocessing(request_: Request, tmp_path: Path) -> LanguagePreprocessing:
    found = LanguagePreprocessing.of_checkpoint(tmp_path / "teacher", 32)
    assert isinstance(found, LanguagePreprocessing)
    return found


def test_the_teacher_teaches_what_is_replayed_and_its_own_replies_without_made_ones(
    request_: Request, preprocessing: LanguagePreprocessing
):
    texts = read_texts(request_, read_questions(request_.data).test)
    found = lessons_of(request_, texts, preprocessing, 32, logits=True)
    assert found.counts == {"replies": 20, "made": 180, "replay": 50}
    assert len(found.train) + len(found.validation) == 250
    assert len(found.validation) == 25
    assert found.replayed is not None
    assert len(found.replayed) == 5
    words = found.train.inputs["input_ids"][:, 1]  # `last` or `next`
    learned, answers = found.train.inputs[LEARNED], (found.train.labels != ABSENT).long()
    assert found.taught
    replayed = 2 * answers[words == 4]
    assert sorted(learned[words == 4].sum(1).tolist()) == sorted([2] * 18 + [4] * 45)
    assert ((learned[words == 4] == answers[words == 4]) | (learned[words == 4] == replayed)).all()
    assert learned[words == 5].equal(answers[words == 5])
    known = lessons_of(request_, [t for t in texts if t.kind != 1], preprocessing, 32, logits=True)
    inputs = known.train.inputs[LEARNED]
    assert inputs.equal(2 * (known.train.labels != ABSENT).long())
    assert LEARNED not in found.validation.inputs
    alone = [text for text in texts if text.kind == 1]
    plain = lessons_of(request_, alone, preprocessing, 32, logits=True)
    assert not plain.taught
    assert plain.replayed is None


def test_a_student_that_reads_another_prompt_learns_no_logits_of_replies(
    request_: Request, preprocessing: LanguagePreprocessing
):
    data = request_.data.model_copy(update={"student_prompt": "so {question} =>"})
    short = request_.model_copy(update={"data": data})
    texts = read_texts(short, read_questions(data).test)
    assert {(text.prompt or "so").split()[0] for text in texts} == {"so"}
    found = lessons_of(short, texts, preprocessing, 32, logits=True).train
    replayed = found.inputs["input_ids"][:, 1] != 7 + len(LETTERS)
    assert (found.inputs[LEARNED] == 2).any(dim=1).equal(replayed)
    alone = [text for text in texts if text.kind == 0]
    assert not lessons_of(short, alone, preprocessing, 32, logits=True).taught


def test_questions_are_messages_where_there_is_a_chat_template(
    request_: Request, preprocessing: LanguagePreprocessing
):
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    chat = preprocessing.model_copy(
        update={"chat_template": template + "{% if add_generation_prompt %}assistant {% endif %}"}
    )
    text = Text(1, {"prompt": "next so so a =>", "answer": "b"}, "next so so a =>")
    plain, spoken = (
        lessons_of(request_, [text, text], each, 32, logits=False).train
        for each in (preprocessing, chat)
    )
    assert plain.inputs["input_ids"].shape[1] == 8
    assert spoken.inputs["input_ids"].shape[1] == 10
    assert (plain.labels[0] != ABSENT).sum() == (spoken.labels[0] != ABSENT).sum() == 2


def test_a_text_that_no_model_takes_is_refused(
    request_: Request, preprocessing: LanguagePreprocessing
):
    texts = read_texts(request_, read_questions(request_.data).test)
    with pytest.raises(FleetError, match="a text has 8 tokens, the models take 7; shorten it"):
        lessons_of(request_, texts, preprocessing, 7, logits=False)
    with pytest.raises(FleetError, match="one text cannot be learned and validated on"):
        lessons_of(request_, texts[:1], preprocessing, 32, logits=False)
