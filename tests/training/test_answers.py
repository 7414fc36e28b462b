"""Answers of a language model: judged in one pass, as they would be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.samples import Samples
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.features import LanguageModel
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.answers import answered, prompted
from acme_fleet.training.evaluation import evaluate
from tiny_language import TEMPLATE, tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), template=TEMPLATE)


def _samples(checkpoint: Path, items: list[dict[str, object]]) -> Samples:
    rule = LanguagePreprocessing.of_checkpoint(checkpoint, 24)
    assert isinstance(rule, LanguagePreprocessing)
    inputs, labels = rule.learned(items)
    return Samples(inputs, labels, torch.zeros(len(items), dtype=torch.int64))


@torch.no_grad()
def test_an_answer_is_right_if_the_model_would_write_it(checkpoint: Path):
    model = LanguageModel(load_language_model(checkpoint)).eval()

    def written(tokens: list[int], count: int) -> list[int]:
        for _ in range(count):
            ids = torch.tensor([tokens])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            tokens = [*tokens, int(logits[0, :, -1].argmax())]
        return tokens[-count:]

    def said(text: str, answer: str) -> dict[str, object]:
        asked = {"role": "user", "content": text}
        return {"messages": [asked, {"role": "assistant", "content": answer}]}

    both = said("sing", "what song")["messages"]
    assert isinstance(both, list)
    items: list[dict[str, object]] = [
        {"prompt": "turn light on =>", "answer": "light"},
        {"prompt": "sing what song now =>", "answer": "on"},
        said("turn", "off"),
        {"messages": both + both},  # only the first answer counts
        {"text": "turn light on"},  # learned from its beginning: asks nothing
    ]
    samples = _samples(checkpoint, items)
    # The model's own words become the first and the third item's answers, and half of the second's.
    pairs = prompted(samples)
    for row, keep in ((0, None), (1, 1), (2, None)):
        prompt, answer = pairs[row]
        own = written(prompt.tolist(), len(answer))[:keep]
        first = len(prompt) - 1
        samples.labels[row, first : first + len(own)] = torch.tensor(own)
        ids = samples.inputs["input_ids"]
        ids[row, first + 1 : first + 1 + len(own)] = torch.tensor(own)
    expected = sum(
        written(prompt.tolist(), len(answer)) == answer.tolist()
        for prompt, answer in prompted(samples)
    )
    found = answered(GENERATION, model, samples)
    assert (found.prompts, found.right) == (4, expected)
    assert 2 <= expected < 4
    assert found.exact == expected / 4
    assert found.found.loss == pytest.approx(evaluate(GENERATION, model, samples).loss)
    assert answered(GENERATION, model, samples[4:]).exact is None
