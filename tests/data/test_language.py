"""Texts, answers and chats as tokens, each with the token that follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acme_fleet.config.data import ABSENT
from acme_fleet.data.language import LanguagePreprocessing, read_language
from acme_fleet.data.raw import Columns
from acme_fleet.errors import FleetError
from tiny_language import TEMPLATE, tiny_llama, written

_COLUMNS = Columns("text", "intent")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), template=TEMPLATE)


@pytest.fixture(scope="module")
def rule(checkpoint: Path) -> LanguagePreprocessing:
    return LanguagePreprocessing.of_checkpoint(checkpoint, 13)


def _learned(rule: LanguagePreprocessing, item: dict[str, Any]) -> tuple[list[str], list[str]]:
    inputs, labels = rule.learned([item])
    tokenizer = rule.ready()
    ids = inputs["input_ids"][0][inputs["attention_mask"][0] != 0].tolist()
    known = [label for label in labels[0].tolist() if label != ABSENT]
    return (*([str(tokenizer.id_to_token(n)) for n in each] for each in (ids, known)),)


def test_every_token_of_a_text_is_learned_and_its_end(rule: LanguagePreprocessing):
    tokens, known = _learned(rule, {"text": "turn light on"})
    assert tokens == ["<s>", "turn", "light", "on", "</s>"]
    assert known == ["turn", "light", "on", "</s>"]


def test_of_a_prompt_with_an_answer_the_answer_alone(rule: LanguagePreprocessing):
    tokens, known = _learned(rule, {"prompt": "turn light on =>", "answer": "light"})
    assert tokens == ["<s>", "turn", "light", "on", "=>", "light", "</s>"]
    assert known == ["light", "</s>"]


def test_of_a_chat_what_the_assistant_says(rule: LanguagePreprocessing):
    messages = [
        {"role": "user", "content": "sing"},
        {"role": "assistant", "content": "what song"},
        {"role": "user", "content": "now"},
        {"role": "assistant", "content": "off"},
    ]
    tokens, known = _learned(rule, {"messages": messages})
    assert " ".join(tokens) == (
        "user sing </s> assistant what song </s> user now </s> assistant off </s>"
    )
    assert known == ["what", "song", "</s>", "off", "</s>"]
    begun = rule.ready().encode("user sing </s> assistant", add_special_tokens=False)
    assert rule.asked("sing") == begun.ids


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"text": "on " * 12}, "has 14 tokens, more than the 13 of data.max_tokens"),
        ({"prompt": "sing", "answer": ""}, "has no token that could be learned"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    rule: LanguagePreprocessing, item: dict[str, str], told: str
):
    if "answer" in item:
        rule = rule.model_copy(update={"special_tokens": {}})
    with pytest.raises(FleetError, match=told):
        rule.learned([item])


def test_a_chat_needs_a_template(rule: LanguagePreprocessing):
    without = rule.model_copy(update={"chat_template": None})
    with pytest.raises(FleetError, match="messages need a chat template, and the checkpoint has n"):
        without.learned([{"messages": [{"role": "assistant", "content": "on"}]}])


def test_a_special_token_that_the_model_does_not_know_is_refused(tmp_path: Path):
    path = tiny_llama(tmp_path) / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"</s>"', '"</none>"'))
    rule = LanguagePreprocessing.of_checkpoint(tmp_path, 8)
    with pytest.raises(FleetError, match="has the token '</none>', number 26; the model knows 26"):
        rule.learned([{"text": "turn light on"}])


def test_a_token_beyond_the_model_is_refused(rule: LanguagePreprocessing):
    small = rule.model_copy(update={"vocabulary": 7})
    with pytest.raises(FleetError, match="the model knows 7 tokens, from 0"):
        small.learned([{"text": "turn light on"}])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": " ", "intent": "a"}, "line 2: 'text' is empty"),
        ({"prompt": "x", "intent": "a"}, "line 2 lacks answer"),
        ({"messages": [], "intent": "a"}, "line 2: no message is of the role 'assistant'"),
        ({"messages": [{"role": "user"}], "intent": "a"}, "line 2, message 1 lacks content"),
        ({"text": "x"}, "line 2 lacks intent"),
        ({"words": "x", "intent": "a"}, "line 2 lacks text"),
    ],
)
def test_lines_that_are_no_samples_are_named(tmp_path: Path, row: dict[str, Any], told: str):
    path = written([{"text": "on", "intent": "a"}, row], tmp_path / "rows.jsonl")
    with pytest.raises(FleetError, match=told):
        read_language([path], _COLUMNS, "data.train")


def test_texts_without_labels_are_of_one_class(tmp_path: Path):
    path = written([{"text": "on"}, {"prompt": "a", "answer": "b"}], tmp_path / "rows.jsonl")
    raw = read_language([path], _COLUMNS, "data.train")
    assert raw.names == ["texts"]
    assert raw.labels.tolist() == [0, 0]
