"""Loss and accuracy of every candidate, measured in one pass, against each candidate on its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from acme_fleet.cloud.objectives import candidate_grid, candidate_quality
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.fleet import Backbone
from acme_fleet.models.features import Classifier
from acme_fleet.models.supernet import ElasticClassifier
from acme_fleet.models.training import evaluate


@pytest.mark.parametrize("batch_size", [7, 64])
def test_quality_is_that_of_each_extracted_candidate(
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
    batch_size: int,
) -> None:
    classifier, samples = make_classifier(), make_samples(50)
    elastic = ElasticClassifier(classifier)
    grid = candidate_grid(Backbone(widths=[0.5, 1.0], depths=[3, 1]), classifier)
    steps: list[tuple[int, int]] = []
    found = candidate_quality(
        elastic, grid, samples, lambda *step: steps.append(step), batch_size=batch_size
    )
    alone = [
        evaluate(Classifier(elastic.extract(elastic.shape(float(w), int(d))), classifier.head), s)
        for w, d, s in zip(grid.widths, grid.depths, [samples] * 4, strict=True)
    ]
    np.testing.assert_allclose(found.losses, [result.loss for result in alone], rtol=1e-5)
    assert found.accuracies.tolist() == pytest.approx([result.accuracy for result in alone])
    assert len(set(found.losses)) == len(grid) == 4
    assert steps[-1] == (4 * -(-50 // batch_size),) * 2


def test_grid_is_every_width_at_every_depth_once(
    make_classifier: Callable[..., Classifier],
) -> None:
    grid = candidate_grid(Backbone(widths=[1.0, 0.5, 1.0], depths=[2, 1]), make_classifier())
    assert list(zip(grid.widths, grid.depths, strict=True)) == [(0.5, 1), (0.5, 2), (1, 1), (1, 2)]
    with pytest.raises(FleetError, match="9 is more than the reference's 3 layers"):
        candidate_grid(Backbone(depths=[9]), make_classifier())
