"""A teacher's remembered answers are those that it gives, and are asked for once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from acme_fleet.config.backbone import Distillation
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation import elastic as distillation
from acme_fleet.distillation.answers import Answers
from acme_fleet.distillation.elastic import Lesson, distill, recovery_of
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier
from acme_fleet.models.padding import without_padding
from acme_fleet.tasks.classification import CLASSIFICATION

_LAYERS = (0, 2)


def _texts(count: int, *, left: bool = False) -> Samples:
    """Texts of one to seven tokens, padded behind or before."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 30, (count, 7), generator=generator)
    mask = (torch.arange(7) < 1 + torch.arange(count)[:, None] % 7).long()
    if left:
        mask = mask.flip(1)
    return Samples({"input_ids": words, "attention_mask": mask}, None, torch.ones(count).long())


def _close(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["images", "texts", "left"])
def test_remembered_answers_are_the_teachers(
    kind: str,
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
) -> None:
    images = kind == "images"
    teacher = ElasticClassifier(make_classifier("vit" if images else "bert"))
    samples = make_samples(20) if images else _texts(20, left=kind == "left")
    answers = Answers.asked(teacher, samples, _LAYERS, batch_size=8)
    rows = torch.tensor([13, 3, 0, 17])
    batch = without_padding(samples[rows])
    tokens = None if images else batch.inputs["attention_mask"].shape[1]
    told = answers.to(rows, tokens)
    with torch.no_grad():
        asked = teacher.run(teacher.shape(teacher.whole), batch.inputs)
    _close(told.logits, asked.logits)
    mine, theirs = told.activations, asked.activations
    _close(mine.pooled, theirs.pooled)
    real = torch.ones(theirs.embeddings.shape[:2], dtype=torch.bool)
    if not images:
        assert mine.mask is not None
        assert theirs.mask is not None
        assert torch.equal(mine.mask, theirs.mask)
        real = theirs.mask
    _close(mine.embeddings[real], theirs.embeddings[real])
    for layer in _LAYERS:
        _close(mine.hidden[layer][real], theirs.hidden[layer][real])
    assert mine.hidden[1].isnan().all()  # was not kept, and must not be learned from
    kept = sum(states.nbytes for states in answers.states.values())
    assert Answers.bytes_of(teacher, samples, _LAYERS) == kept


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize("match", ["states", "features"])
def test_students_learn_the_same_from_them(
    kind: str,
    match: Any,
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = make_samples(20) if kind == "images" else _texts(20)
    step = recovery_of(Distillation(), Variant(0.5, 2), Lesson(match, logits=True))
    training = Training(epochs=3, batch_size=8, learning_rate=1e-3)

    def learned(most_bytes: int) -> tuple[dict[str, Tensor], int]:
        monkeypatch.setattr(distillation, "MOST_BYTES", most_bytes)
        student = ElasticClassifier(make_classifier("vit" if kind == "images" else "bert"))
        teacher = student.frozen_copy()
        asked: list[object] = []
        run = teacher.run
        monkeypatch.setattr(teacher, "run", lambda *of: asked.append(of) or run(*of))
        student.classifier.requires_grad_(True)
        draw = torch.Generator().manual_seed(0)
        distill(CLASSIFICATION, teacher, student, step, samples, training, draw)
        return student.classifier.state_dict(), len(asked)

    (remembered, once), (anew, every) = learned(10**9), learned(0)
    looks = int(kind == "images")  # at the size of an input
    assert (once, every) == (looks + 3, looks + 3 * 3)
    for name, value in anew.items():
        torch.testing.assert_close(remembered[name], value, rtol=1e-3, atol=1e-4, msg=name)
