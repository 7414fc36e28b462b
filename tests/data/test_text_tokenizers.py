"""Tokenizers of unknown origin: refused by name, before they fill the memory or stop a process."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from acme_fleet.data.checkpoint_files import tokenizer_content
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.errors import FleetError
from acme_fleet_runtime.texts import MOST_ADDED, Tokens

_DOCUMENT: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "sun": 1}, "unk_token": "[UNK]"},
}


def _changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(_DOCUMENT)
    change(document)
    return document


def _framed(document: dict[str, Any], sequence: str, times: int) -> None:
    special = {"id": "[UNK]", "ids": [0], "tokens": ["[UNK]"]}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[UNK]", "type_id": 0}}] * times
        + [{"Sequence": {"id": sequence, "type_id": 0}}],
        "pair": [{"Sequence": {"id": each, "type_id": 0}} for each in "AB"],
        "special_tokens": {"[UNK]": special},
    }


_NUMBERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "the token 'rain' has the number 1,073,741,824": lambda d: d["model"]["vocab"].update(
        rain=2**30
    ),
    "the token 'rain' has the number 4,194,304": lambda d: d["added_tokens"].append(
        {"id": 2**22, "content": "rain"}
    ),
    "16,385 added tokens are more than 16,384": lambda d: d.update(
        added_tokens=[{}] * (MOST_ADDED + 1)
    ),
}


@pytest.mark.parametrize("told", _NUMBERS)
def test_numbers_that_would_fill_the_memory(told: str, tmp_path: Path):
    document = _changed(_NUMBERS[told])
    with pytest.raises(ValidationError, match=told):
        TextPreprocessing(tokenizer=document, max_tokens=8, pad_id=0)
    with pytest.raises(FleetError, match=f"the tokenizer: {told}"):
        Tokens(json.dumps(document), 8, 0, None)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(FleetError, match=rf"tokenizer\.json: {told}"):
        tokenizer_content("here", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", {"rain": 2**30}),
        ("added_tokens.json", {"rain": 2**30}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(2**30): {"content": "rain"}}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<x>"] * (MOST_ADDED + 1)}),
    ],
)
def test_numbers_in_the_files_beside_it(name: str, content: dict[str, Any], tmp_path: Path):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(FleetError, match=rf"{name}: .*(1,073,741,824|16,385 added)"):
        tokenizer_content("here", tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: _framed(d, "A", 100), "has 101 tokens, also when it is cut to 8"),
        (lambda d: _framed(d, "B", 1), "cannot be tokenized: index out of bounds"),
        (
            lambda d: d.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
            "cannot be tokenized: chunk size must be non-zero",
        ),
    ],
)
def test_a_tokenizer_that_breaks_is_an_error_of_ours(
    change: Callable[[dict[str, Any]], object], told: str
):
    document = _changed(change)
    with pytest.raises(FleetError, match=told):
        TextPreprocessing(tokenizer=document, max_tokens=8, pad_id=0).inputs(["sun"])
    with pytest.raises(FleetError, match=told):
        Tokens(json.dumps(document), 8, 0, None).numbers("sun")


def test_merges_are_not_left_out_at_random():
    model = {"type": "BPE", "vocab": {"s": 0, "u": 1, "su": 2}, "merges": ["s u"], "dropout": 0.5}
    document = _changed(lambda d: d.update(model=model))
    preprocessing = TextPreprocessing(tokenizer=document, max_tokens=4, pad_id=0)
    encoded = preprocessing.inputs(["su"] * 40)["input_ids"]
    assert (encoded == encoded[0]).all()
    assert encoded[0, 0] == 2
