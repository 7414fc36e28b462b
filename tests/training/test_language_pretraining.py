"""A language model from texts alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.data import ABSENT
from acme_fleet.config.training import Training
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.backbone.elastic import with_vocabulary
from acme_fleet.models.features import LanguageModel
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.language_pretraining import (
    DECODERS,
    Decoder,
    LanguageRecipe,
    pretrain_language,
)
from acme_fleet_runtime.chat import ChatTemplate
from tiny_language import written, written_rows

_RECIPE = LanguageRecipe("tiny", Training(epochs=2, batch_size=16, learning_rate=0.02), 40)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "tiny", Decoder(16, 1, 2, 1, 16, 280))


def test_it_learns_and_goes_on_where_it_stopped(tmp_path: Path):
    data = written_rows(tmp_path / "rows.jsonl", 120, answers=False)
    told: list[str] = []
    found = pretrain_language(
        data, "text", _RECIPE, tmp_path / "whole", lambda done, of, note: told.append(note)
    )
    assert found["test"]["loss"] < 5.63  # of 280 tokens, all equally probable
    assert "perplexity" in told[-1]

    def stop(done: int, of: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_language(data, "text", _RECIPE, tmp_path / "stopped", stop)
    pretrain_language(data, "text", _RECIPE, tmp_path / "stopped")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids = tokenizer("turn the light on", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "turn the light on"
    assert model.config.tie_word_embeddings
    assert load_language_model(tmp_path / "whole").config.language_head == "tied"


def test_the_command_trains_it_and_names_what_is_wrong(tmp_path: Path):
    data = written_rows(tmp_path / "rows.jsonl", 60, answers=True)
    options = ["--data", str(data), "--model", "tiny", "--epochs", "1"]
    told = CliRunner().invoke(app, ["pretrain", *options, "--out", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert "a token on 3 texts" in told.output
    short = CliRunner().invoke(
        app, ["pretrain", *options, "--max-tokens", "3", "--out", str(tmp_path / "refused")]
    )
    assert "more than the 3 of --max-tokens" in " ".join(short.output.split())
    assert not (tmp_path / "refused").exists()
    again = CliRunner().invoke(app, ["pretrain", *options, "--out", str(tmp_path / "refused")])
    assert again.exit_code == 0, again.output
    with pytest.raises(FleetError, match="there is no nano; choose one of llama-nano"):
        pretrain_language(data, "text", LanguageRecipe("nano", _RECIPE.training), tmp_path / "no")


def test_messages_bring_a_chat_template(tmp_path: Path):
    says = [("system", "be brief"), ("user", "turn the light"), ("assistant", "on")]
    chat = {"messages": [{"role": role, "content": content} for role, content in says]}
    data = written([chat] * 60, tmp_path / "chats.jsonl")
    pretrain_language(data, "text", _RECIPE, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.apply_chat_template(chat["messages"], tokenize=False) == (
        "<|begin|>system\nbe brief<|end|><|begin|>user\nturn the light<|end|>"
        "<|begin|>assistant\non<|end|>"
    )
    rule = LanguagePreprocessing.of_checkpoint(tmp_path / "model", 40)
    _, labels = rule.learned([chat])
    learned = labels[labels != ABSENT].tolist()
    assert rule.text(learned) == "on"
    assert learned[-1] == rule.end
    begun = ChatTemplate(rule.chat_template or "", rule.special_tokens).written(
        chat["messages"][:2]
    )
    assert begun.endswith("turn the light<|end|><|begin|>assistant\n")
    prompts = written([{"prompt": "a b", "answer": "c"}] * 60, tmp_path / "prompts.jsonl")
    pretrain_language(prompts, "text", _RECIPE, tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template is None


def test_its_vocabulary_can_be_cut(tmp_path: Path):
    data = written_rows(tmp_path / "rows.jsonl", 60, answers=False)
    pretrain_language(data, "text", _RECIPE, tmp_path / "model")
    rule = LanguagePreprocessing.of_checkpoint(tmp_path / "model", 40)
    items = [{"text": "turn the light on"}, {"text": "what is the weather"}]
    inputs, _ = rule.learned(items)
    whole = LanguageModel(load_language_model(tmp_path / "model"))
    samples = Samples(inputs, torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
    kept = rule.kept_tokens([samples], 270)
    small, cut = LanguageModel(with_vocabulary(whole.backbone, kept)), rule.cut(kept)
    assert len(kept) == 270
    assert (cut.end, cut.kind) == (kept.index(rule.end), "language")
    renumbered, labels = cut.learned(items)
    assert [cut.text(row.tolist()) for row in renumbered["input_ids"]] == [
        item["text"] for item in items
    ]
    assert small(**renumbered).shape == (2, 270, 40)
    assert float(GENERATION.loss(small(**renumbered), labels).detach()) < 7
