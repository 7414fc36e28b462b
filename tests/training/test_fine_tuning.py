"""Fine-tuning of a pre-trained reference, by labels and by pairs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.config.backbone import Reference, ViT
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.errors import FleetError
from acme_fleet.models.features import Classifier
from acme_fleet.models.probe import probe_of
from acme_fleet.models.vit import new_vit, vit_config
from acme_fleet.tasks.base import ABSENT
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import fit_probe
from acme_fleet.training import fine_tuning
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.fine_tuning import contrast, contrastive_loss, fine_tune, paired_batches
from tiny_fleet import tiny

_PLAN = Training(epochs=12, batch_size=16, learning_rate=1e-2)


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _settings(**changes: Any) -> Reference:
    return Reference.model_validate({"checkpoint": "a-name", "training": _PLAN, **changes})


@pytest.fixture
def started(make_samples: Any) -> tuple[Classifier, Splits]:
    """A backbone with a regression on its features, and few samples."""
    public = Splits(make_samples(192, 1), make_samples(96, 2), make_samples(96, 3))
    shape = ViT(hidden_size=16, layers=2, heads=2, neurons=32)
    config = vit_config(Reference(model=shape), (1, 8, 8))
    model = new_vit(CLASSIFICATION, config, list("abcd"), 0).eval()
    model.head.load_state_dict(probe_of(fit_probe, model, public)[0])
    return model, public


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(0, 2**31),
)
def test_half_of_a_batch_are_partners_of_the_other_half(labels, size, seed) -> None:
    known = torch.tensor(labels)
    batches = paired_batches(known, size, _draw(seed))
    assert len(batches) == -(-len(labels) // size)
    for rows in batches:
        anchors, partners = rows.chunk(2)
        assert len(rows) <= max(2, size)
        assert torch.equal(known[anchors], known[partners])
        assert len(set(anchors.tolist())) == len(anchors)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=8), st.integers(0, 2**31))
def test_contrastive_loss_by_hand(labels, seed) -> None:
    vectors = torch.randn(len(labels), 5, generator=_draw(seed))
    within, between = [], []
    for i, one in enumerate(labels):
        for j, other in enumerate(labels):
            cosine = float(F.cosine_similarity(vectors[i], vectors[j], dim=0))
            if i != j:
                (within if one == other else between).append((cosine - (one == other)) ** 2)
    expected = sum(sum(kind) / max(1, len(kind)) for kind in (within, between)) / 2
    found = contrastive_loss(vectors, torch.tensor(labels))
    assert float(found) == pytest.approx(expected, abs=1e-5)


def _unlike(before: Mapping[str, Tensor], model: torch.nn.Module) -> bool:
    return any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("recipe", ["labels", "contrastive"])
def test_a_backbone_learns_what_its_features_lacked(
    recipe: str, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, public = started
    before = copy.deepcopy(model.state_dict())
    start = evaluate(CLASSIFICATION, model, public.validation)
    told: list[tuple[int, int]] = []
    notes = _draw(), lambda done, of, _: told.append((done, of))
    settings = _settings()
    if recipe == "labels":
        fine_tune(CLASSIFICATION, model, settings, public, notes[0], None, notes[1])
    else:
        # Pairs first make a drawn backbone worse, on one processor for longer than on another.
        monkeypatch.setattr(fine_tuning, "_PATIENCE", 24)
        longer = _PLAN.model_copy(update={"epochs": 24, "learning_rate": 2e-2})
        settings = _settings(recipe=recipe, training=longer)
        contrast(fit_probe, model, settings, public, *notes)
    assert _unlike(before, model)
    assert told[0] == (1, settings.training.epochs)
    assert not model.training
    assert evaluate(CLASSIFICATION, model, public.validation).score > start.score + 0.02
    found, score = probe_of(fit_probe, model, public)
    if recipe == "contrastive":  # the head is the regression on what is kept
        assert all(
            torch.equal(found[name], value) for name, value in model.head.state_dict().items()
        )
        assert score == evaluate(CLASSIFICATION, model, public.validation).score


@pytest.mark.parametrize("recipe", ["labels", "contrastive"])
def test_nothing_that_loses_is_kept(recipe: str, started: Any) -> None:
    """Labels at random teach nothing that helps on the validation data."""
    model, public = started
    labels = public.train.labels[torch.randperm(len(public.train), generator=_draw(5))]
    train = Samples(public.train.inputs, labels, public.train.stored_bytes)
    spoilt = Splits(train, public.validation, public.test)
    model.head.load_state_dict(probe_of(fit_probe, model, public)[0])
    start = evaluate(CLASSIFICATION, model, public.validation)
    before = copy.deepcopy(model.backbone.state_dict())
    if recipe == "labels":
        fine_tune(CLASSIFICATION, model, _settings(), spoilt, _draw(), None, lambda *_: None)
        after = evaluate(CLASSIFICATION, model, public.validation)
        assert after.scores_at_least(start)
        if after == start:
            assert not _unlike(before, model.backbone)
    else:
        first = probe_of(fit_probe, model, spoilt)[1]
        settings = _settings(recipe=recipe)
        contrast(fit_probe, model, settings, spoilt, _draw(), lambda *_: None)
        assert probe_of(fit_probe, model, spoilt)[1] >= first


def test_smoothed_labels_are_pytorchs() -> None:
    outputs, labels = torch.randn(6, 3, generator=_draw()), torch.tensor([0, 1, 2, 2, ABSENT, 0])
    found = CLASSIFICATION.smoothed(0.2).loss(outputs, labels)
    real = labels != ABSENT
    spread = 0.8 * F.one_hot(labels[real], 3) + 0.2 / 3
    expected = -(spread * outputs[real].log_softmax(dim=1)).sum(dim=1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(
        CLASSIFICATION.smoothed(0.0).loss(outputs, labels),
        F.cross_entropy(outputs, labels, ignore_index=ABSENT),
    )


def test_contrast_needs_a_checkpoint() -> None:
    with pytest.raises(ValueError, match="recipe: contrastive fine-tunes a `checkpoint`"):
        Reference.model_validate({"recipe": "contrastive"})
    with pytest.raises(FleetError, match="label_smoothing"):
        tiny(**{"reference.label_smoothing": 1.0})
