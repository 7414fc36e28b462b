"""A step in parts is the step on the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from acme_fleet.config.data import ABSENT
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.loop import fit, in_parts


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class _Next(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids).transpose(1, 2)


def _images(draw: torch.Generator) -> Samples:
    labels = torch.randint(4, (11,), generator=draw)
    return Samples({"x": torch.randn(11, 3, generator=draw)}, labels, torch.ones(11).long())


def _texts(draw: torch.Generator) -> Samples:
    lengths = torch.randint(2, 8, (11, 1), generator=draw)
    mask = (torch.arange(8) < lengths).long()
    ids = torch.randint(1, 6, (11, 8), generator=draw) * mask
    labels = ids.roll(-1, 1).masked_fill(torch.arange(8) >= lengths - 1, ABSENT)
    return Samples({"input_ids": ids, "attention_mask": mask}, labels, torch.ones(11).long())


@pytest.mark.parametrize("parts", [2, 3, 20])
@pytest.mark.parametrize("texts", [False, True])
def test_a_step_in_parts_is_the_step(texts: bool, parts: int):
    draw = torch.Generator().manual_seed(0)
    samples, task = (_texts(draw), GENERATION) if texts else (_images(draw), CLASSIFICATION)
    torch.manual_seed(0)
    whole = _Next() if texts else _Linear()
    split = copy.deepcopy(whole)
    training = Training(epochs=3, batch_size=6, learning_rate=0.1)
    for model, own in ((whole, training), (split, training.model_copy(update={"parts": parts}))):
        fit(task, model, samples, own, torch.Generator().manual_seed(1))
    for one, other in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_texts_without_labels_are_weighted_by_their_tokens():
    texts = _texts(torch.Generator().manual_seed(0))
    unlabelled = Samples(texts.inputs, None, texts.stored_bytes)
    parts = in_parts(unlabelled, 2)
    tokens = [int(part.inputs["attention_mask"].sum()) for part, _ in parts]
    assert [share for _, share in parts] == pytest.approx([n / sum(tokens) for n in tokens])
    assert all(part.inputs["attention_mask"].any(dim=0).all() for part, _ in parts)
