"""Large grids: no front has a guess in it, and most candidates are judged on few samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.cloud import first_pass
from acme_fleet.cloud.first_pass import costs_of, judged, neighbourhood
from acme_fleet.cloud.objectives import (
    Grid,
    Quality,
    candidate_grid,
    candidate_sizes,
    sent_quality,
)
from acme_fleet.config.backbone import Backbone
from acme_fleet.config.devices import Energy, Precision
from acme_fleet.config.training import Training
from acme_fleet.cost.energy import energy_j
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier
from acme_fleet.selection.front import exact_front, front
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import fit
from tiny_fleet import tiny


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Table:
    """Candidates with a known loss on each sample; counts what is judged."""

    def __init__(self, each: np.ndarray) -> None:
        self.each = each
        self.grid = Grid(tuple(Variant(1.0, 1 + i) for i in range(len(each))))
        self.judged: list[tuple[int, int]] = []

    def __call__(self, grid: Grid, samples: Samples) -> Quality:
        at = [self.grid.variants.index(variant) for variant in grid.variants]
        self.judged.append((len(grid), len(samples)))
        each = self.each[at][:, samples.inputs["pixel_values"][:, 0].long().numpy()]
        return Quality(each.mean(axis=1), 1 / (1 + each.mean(axis=1)), each)


def numbered(count: int) -> Samples:
    inputs = {"pixel_values": torch.arange(count).float()[:, None]}
    return Samples(inputs, None, torch.ones(count, dtype=torch.int64))


@given(st.integers(0, 999), st.integers(2, 30), st.integers(1, 3))
def test_without_chance_the_neighbourhood_is_the_front(seed: int, count: int, costs: int) -> None:
    """Losses that differ by the same number on every sample."""
    random = np.random.default_rng(seed)
    losses, table = random.random(count), random.integers(0, 4, (count, costs))
    each = losses[:, None] + random.random(10)
    expected = [
        not any(losses[a] < losses[b] and (table[a] <= table[b]).all() for a in range(count))
        for b in range(count)
    ]
    assert neighbourhood(each, table).tolist() == expected


def test_a_difference_within_chance_keeps_both() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, 400))
    each = np.stack([1 + noise[0], 1.1 + noise[1], 1.1 + noise[0]])
    costs = np.array([[1], [1], [1]])
    # The second may be better than the first; the third, paired with it, cannot be.
    assert neighbourhood(each, costs).tolist() == [True, True, False]


def test_no_finite_loss_tells_nothing() -> None:
    each = np.array([[np.nan] * 4, [0.0, 0, 0, 1], [9.0] * 4])
    costs = np.array([[1], [2], [2]])
    assert neighbourhood(each, costs).tolist() == [True, True, False]
    found = judged(Table(each), Table(each).grid, numbered(4), costs, 0, draw())
    assert found.estimated is None


@pytest.mark.parametrize("noise", [0.0, 0.3])
@given(seed=st.integers(0, 999))
def test_nothing_is_on_a_front_by_an_estimate(noise: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    count = first_pass.LARGE + 1
    costs = random.integers(0, 30, (count, 2))
    each = 3 / (1 + costs.sum(axis=1))[:, None] + noise * random.random((count, 300))
    each = np.abs(each + random.normal(scale=0.05, size=(count, 1)))
    table = Table(each)
    found = judged(table, table.grid, numbered(300), costs, 40, draw())
    assert found.estimated is not None
    assert found.scores is not None
    assert found.estimated.any()
    full = each.mean(axis=1)
    known = ~found.estimated
    np.testing.assert_allclose(found.losses[known], full[known])
    assert np.abs(found.losses - full).max() <= 0.3 * noise + 1e-9
    objectives = np.column_stack([found.losses, costs])
    assert not (exact_front(objectives) & found.estimated).any()
    assert table.judged[0] == (count, 40)
    assert sum(rows for rows, of in table.judged if of == 300) == known.sum() < count
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    if not noise:
        true = exact_front(np.column_stack([full, costs]))
        assert (exact_front(objectives) == true).all()


@pytest.mark.parametrize("few", [0, 300, 400])
def test_all_are_judged_on_all_where_that_is_asked(few: int) -> None:
    table = Table(np.random.default_rng(0).random((first_pass.LARGE + 1, 300)))
    costs = np.ones((len(table.grid), 1))
    found = judged(table, table.grid, numbered(300), costs, few, draw())
    assert table.judged == [(len(table.grid), 300)]
    assert found.estimated is None


def test_a_candidate_whose_rivals_diverge_on_all_samples_is_judged_on_all() -> None:
    each = np.full((first_pass.LARGE + 1, 300), 2.0)
    each[0] = 1.0
    table, costs = Table(each), np.ones((len(each), 1))
    some = torch.randperm(300, generator=draw())[:40]
    each[0, next(i for i in range(300) if i not in some.tolist())] = np.inf
    found = judged(table, table.grid, numbered(300), costs, 40, draw())
    assert found.estimated is not None
    assert not found.estimated.any()
    assert found.losses[1:].tolist() == [2.0] * (len(each) - 1)


@pytest.mark.parametrize("per_depth", [0.0, 0.02])
def test_no_device_needs_less_energy_at_higher_costs(per_depth: float) -> None:
    energy = {"latency_per_depth_s": per_depth, "int8": 0.1}
    device = {"name": "cam", "storage": "60 kB", "energy": energy}
    fleet = tiny(clusters=[{"name": "north", "devices": [device]}])
    grid = candidate_grid_of([0.25, 0.5, 1.0], [0.5, 1.0], [1, 2, 3])
    costs = costs_of(grid, np.zeros(len(grid)), fleet)
    assert costs.shape[1] == (5 if per_depth else 4)
    found = energy_j(Energy(**energy), grid.work, grid.depths, 16, grid.precisions)
    for a in range(len(grid)):
        for b in range(len(grid)):
            if (costs[a] <= costs[b]).all():
                assert found[a] <= found[b] * (1 + 1e-12)
                assert grid.precisions[a] == grid.precisions[b]


def candidate_grid_of(widths: list[float], hidden: list[float], depths: list[int]) -> Grid:
    precisions: list[Precision] = ["int8", "float32"]
    shares = itertools.product(widths, depths, hidden, precisions)
    return Grid(tuple(Variant(*each) for each in shares))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_models_front_is_that_of_a_full_pass(
    labelled: bool,
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_pass, "LARGE", 10)
    classifier = make_classifier(layers=3)
    training = Training(epochs=10, batch_size=32, learning_rate=4e-3)
    known = make_samples(256)
    fit(CLASSIFICATION, classifier, known, training, draw())
    elastic = ElasticClassifier(classifier)
    settings = Backbone(
        widths=[0.25, 0.5, 1.0], hidden=[0.5, 0.75, 1.0], depths=[1, 2, 3], precisions=("float32",)
    )
    grid, validation = candidate_grid(settings, classifier), make_samples(400, seed=1)
    if not labelled:
        validation = Samples(validation.inputs, None, validation.stored_bytes)
    teacher, fleet = elastic.frozen_copy(), tiny()
    sizes = candidate_sizes(elastic, grid, fleet.header)
    asked: list[tuple[int, int]] = []

    def judge(grid: Grid, samples: Samples) -> Quality:
        asked.append((len(grid), len(samples)))
        models = elastic, teacher
        return sent_quality(CLASSIFICATION, *models, grid, samples, lambda *_: None, known)

    full = judge(grid, validation)
    costs = costs_of(grid, sizes, fleet)
    asked.clear()
    found = judged(judge, grid, validation, costs, 100, draw())
    assert found.estimated is not None
    assert found.estimated.any()
    assert asked[0] == (27, 100)
    assert {of for _, of in asked[1:]} == {400}
    energies = energy_j(Energy(), grid.work, grid.depths, 4)
    fronts = [
        front(np.column_stack([quality.losses, energies, sizes]), 0.05).tolist()
        for quality in (full, found)
    ]
    assert fronts[0] == fronts[1]
    known = ~found.estimated
    np.testing.assert_allclose(found.losses[known], full.losses[known], rtol=1e-5)
    np.testing.assert_allclose(found.losses, full.losses, rtol=0.3)
    assert (found.scores is not None) == labelled
