"""A student of a smaller vocabulary: what it learns from made data, in tokens of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from acme_fleet.errors import FleetError
from acme_fleet.stratos.distill import distil
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.students import load_model
from tiny_distillation import task
from tiny_language import bytewise_decoder

_WORDS, _KEPT = 300, 270


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bytewise_decoder(tmp_path_factory.mktemp("decoder"))


def asked(folder: Path, decoder: Path, vocabulary: int, **changes: Any) -> Path:
    """A task file whose student keeps so many of the decoder's tokens."""
    config = json.loads((decoder / "config.json").read_text())
    shape = {
        **{"family": "llama", "layers": 2, "hidden": 64, "heads": 4, "key_heads": 2},
        **{"head_dim": 16, "neurons": 128, "context": 128, "tied": True},
        "vocabulary": config["vocab_size"],
    }
    model = {
        **{"name": "bytes", "weights": str(decoder), "licence": "mit", "tokenizer": "bytes"},
        **{"shape": shape, "may_teach": True},
    }
    cuts = {"teacher": "bytes", "widths": [0.5], "depths": [2], "vocabulary": vocabulary}
    tokens = {"prompt_tokens": 40, "answer_tokens": 4, "epochs": 3}
    table = {"teachers": [model], "cuts": [cuts]}
    return task(folder, decoder, table=table, workload=tokens, **changes)


def test_it_ships_with_its_own_tokenizer(decoder: Path, tmp_path: Path):
    path = asked(tmp_path, decoder, _KEPT)
    summary = distil(Request.from_yaml(path), tmp_path / "run")
    assert summary.chosen.student == f"bytes/0.5-2-v{_KEPT}"
    assert summary.chosen.by == "answers"
    assert summary.validation.student < 0.5 * summary.validation.start
    own = tmp_path / "run" / "student"
    model = AutoModelForCausalLM.from_pretrained(own)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == _KEPT
    assert summary.params == sum(p.numel() for p in model.parameters())
    small, large = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (own, decoder))
    assert small.get_vocab_size() == _KEPT < large.get_vocab_size()
    for text in ("next so well a => b", "Füße, 語"):
        assert small.decode(small.encode(text).ids) == text
    tokenizer = AutoTokenizer.from_pretrained(own)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 1)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(decoder).chat_template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    start = load_model(tmp_path / "run" / "start").backbone.get_input_embeddings()
    assert start.num_embeddings == _KEPT


@pytest.mark.parametrize(
    ("vocabulary", "changes", "message"),
    [
        (_WORDS, {}, f"cuts: vocabulary: bytes has {_WORDS} tokens, and a cut of it has fewer"),
        (_KEPT, {"distillation": "logits"}, f"bytes is not bytes-v{_KEPT}"),
        (100, {}, r"vocabulary: 100 is less than the \d+ special tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused_before_any_work(
    decoder: Path, tmp_path: Path, vocabulary: int, changes: dict[str, Any], message: str
):
    path = asked(tmp_path, decoder, vocabulary, **changes)
    with pytest.raises(FleetError, match=message):
        distil(Request.from_yaml(path), tmp_path / "run")
    assert not (tmp_path / "run" / "start").exists()
