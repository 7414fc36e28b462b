"""Loss and accuracy of every candidate, measured in one pass, against each candidate on its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from acme_fleet.cloud.objectives import (
    Grid,
    Quality,
    candidate_grid,
    candidate_quality,
    candidate_sizes,
    chances,
    feature_quality,
    sent_quality,
    without_loss,
)
from acme_fleet.config.backbone import Backbone, Distillation
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import distill, lesson_of, step_of
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier, activations
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from tiny_fleet import tiny


@pytest.mark.parametrize("batch_size", [7, 64])
def test_quality_is_that_of_each_extracted_candidate(
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
    batch_size: int,
) -> None:
    classifier, samples = make_classifier(), make_samples(50)
    elastic = ElasticClassifier(classifier)
    grid = candidate_grid(
        Backbone(widths=[0.5, 1.0], depths=[3, 1], precisions=("float32",)), classifier
    )
    steps: list[tuple[int, int]] = []
    found = candidate_quality(
        CLASSIFICATION,
        elastic,
        grid,
        samples,
        lambda *step: steps.append(step),
        batch_size=batch_size,
    )
    alone = [
        evaluate(
            CLASSIFICATION,
            Classifier(elastic.extract(arch), elastic.extract_head(arch)),
            samples,
        )
        for arch in map(elastic.shape, grid.variants)
    ]
    np.testing.assert_allclose(found.losses, [result.loss for result in alone], rtol=1e-5)
    assert found.scores.tolist() == pytest.approx([result.score for result in alone])
    assert len(set(found.losses)) == len(grid) == 4
    assert steps[-1] == (4 * -(-50 // batch_size),) * 2


def test_without_labels_a_candidate_is_as_good_as_its_features(
    make_classifier: Callable[..., Classifier], make_samples: Callable[..., Samples]
) -> None:
    """The error over the teacher's variance on all samples, whatever the batches are."""
    classifier, samples = make_classifier(), make_samples(50)
    elastic = ElasticClassifier(classifier)
    teacher = elastic.frozen_copy()
    grid = candidate_grid(
        Backbone(widths=[0.5, 1.0], depths=[3, 1], precisions=("float32",)), classifier
    )
    unlabelled = Samples(samples.inputs, None, samples.stored_bytes)
    steps: list[tuple[int, int]] = []
    found = feature_quality(
        elastic, teacher, grid, unlabelled, lambda *step: steps.append(step), batch_size=7
    )
    assert found.scores is None
    with torch.no_grad():
        theirs = activations(classifier.backbone, samples.inputs).pooled
        for row, variant in enumerate(grid.variants):
            small = elastic.extract(elastic.shape(variant))
            error = (activations(small, samples.inputs).pooled - theirs).square()
            variance = theirs.var(dim=0, correction=0)
            floor = 1e-3 * float(variance.mean())
            expected = float((error / variance.clamp(min=floor)).mean())
            assert found.losses[row] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert found.losses.argmin() == 3  # width 1, depth 3: the teacher itself
    assert found.losses[3] == 0
    assert (found.losses[:3] > 0).all()
    assert steps[-1] == (4 * -(-50 // 7),) * 2


def test_learning_without_labels_lowers_the_loss_of_every_candidate(
    make_classifier: Callable[..., Classifier], make_samples: Callable[..., Samples]
) -> None:
    student = ElasticClassifier(make_classifier(layers=2))
    teacher = student.frozen_copy()
    grid = candidate_grid(
        Backbone(widths=[0.25, 0.5, 1.0], depths=[1, 2], precisions=("float32",)),
        student.classifier,
    )
    known, unseen = (
        Samples(each.inputs, None, each.stored_bytes)
        for each in (make_samples(192), make_samples(64, seed=1))
    )

    def losses() -> np.ndarray:
        return sent_quality(CLASSIFICATION, student, teacher, grid, unseen, lambda *_: None).losses

    before = losses()
    lesson = lesson_of(Distillation(), "untouched")
    step = step_of(Distillation(), 1, [0.25, 0.5, 1.0], [1, 2], lesson)
    training = Training(epochs=12, batch_size=32, learning_rate=4e-3)
    distill(
        CLASSIFICATION, teacher, student, step, known, training, torch.Generator().manual_seed(0)
    )
    after = losses()
    assert before[-1] == after[-1] == 0  # the whole model is sent as the reference
    assert (after[:-1] < 0.7 * before[:-1]).all()


def test_grid_is_every_width_at_every_depth_once(
    make_classifier: Callable[..., Classifier],
) -> None:
    grid = candidate_grid(
        Backbone(widths=[1.0, 0.5, 1.0], depths=[2, 1], precisions=("float32",)), make_classifier()
    )
    pairs = [(variant.width, variant.depth) for variant in grid.variants]
    assert pairs == [(0.5, 1), (0.5, 2), (1, 1), (1, 2), (1, 3)]
    thin = candidate_grid(
        Backbone(widths=[0.5], hidden=[1, 0.5], depths=[1, 2], precisions=("float32",)),
        make_classifier(),
    )
    assert [variant.brief for variant in thin.variants] == [
        *("0.5, 1, h 0.5", "0.5, 2, h 0.5", "0.5, 1", "0.5, 2", "1, 3")
    ]
    both = Backbone(widths=[0.5], depths=[1], precisions=("float32", "int8", "int8"))
    assert [variant.brief for variant in candidate_grid(both, make_classifier()).variants] == [
        *("0.5, 1, int8", "0.5, 1", "1, 3, int8", "1, 3")
    ]
    with pytest.raises(FleetError, match="9 is more than the reference's 3 layers"):
        candidate_grid(Backbone(depths=[9]), make_classifier())


def test_candidates_without_a_loss_are_named_and_none_at_all_is_an_error() -> None:
    fleet = tiny()
    grid = Grid((Variant(0.5, 1), Variant(1.0, 1), Variant(1.0, 2)))
    quality = Quality(np.array([0.3, np.nan, np.inf]), np.zeros(3))
    told = without_loss(grid, quality, fleet)
    assert len(told) == 2
    assert "candidate w 1, d 1 is left out" in told[0]
    assert "d 2" in told[1]
    assert without_loss(grid, Quality(np.zeros(3), np.zeros(3)), fleet) == []
    with pytest.raises(FleetError, match=r"none of the 3 candidates.*reference.training \(0.01\)"):
        without_loss(grid, Quality(np.full(3, np.nan), np.zeros(3)), fleet)


def test_chances_are_devices_that_can_have_a_shape_and_none_that_is_larger(
    make_classifier: Callable[..., Classifier],
) -> None:
    """A device without int8 cannot have what fits in int8 alone."""
    elastic = ElasticClassifier(make_classifier())
    backbone = Backbone(widths=[0.5], depths=[1, 2], precisions=("int8", "float32"))
    grid = candidate_grid(backbone, elastic.classifier)
    fleet = tiny()
    sizes = candidate_sizes(elastic, grid, fleet.header)
    size = dict(zip(grid.variants, map(int, sizes), strict=True))
    deep = Variant(0.5, 2)
    devices = [
        {"name": "both", "storage": size[deep.at("int8")]},
        {"name": "plain", "storage": size[deep] - 1, "precisions": ["float32"]},
        {"name": "large", "storage": max(size.values())},
    ]
    clusters = [{"name": "all", "devices": devices}]
    fleet = Fleet.model_validate(
        fleet.model_dump(exclude={"clusters"}) | {"backbone": backbone, "clusters": clusters}
    )
    whole = Variant.whole(int(grid.depths.max()))
    assert size[Variant(0.5, 1)] < size[deep] < size[whole.at("int8")] < size[whole]
    assert chances(elastic, fleet) == {Variant(0.5, 1): 1, deep: 1, whole: 1}
