"""Texts to learn: where each is from, and who teaches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_fleet.config.data import ABSENT
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.stratos.lessons import TAUGHT, Text, lessons_of, read_texts
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.request import Request
from tiny_distillation import asked, lines, task, untrained


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


def test_the_teacher_teaches_its_own_replies_and_what_is_replayed(
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
    taught = found.train.inputs[TAUGHT]
    assert taught[words == 4].equal((found.train.labels[words == 4] != ABSENT).long())
    assert not taught[words == 5].any()
    assert TAUGHT not in found.validation.inputs
    alone = [text for text in texts if text.kind == 1]
    plain = lessons_of(request_, alone, preprocessing, 32, logits=True)
    assert TAUGHT not in plain.train.inputs
    assert plain.replayed is None


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
