"""The weighted pick, its rivals and the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from acme_fleet.selection.ideal import (
    deployment_scores,
    oracle,
    random_pick,
    single_objective_pick,
    weighted_pick,
)

_tables = st.integers(1, 12).flatmap(
    lambda rows: arrays(np.float64, (rows, 3), elements=st.integers(0, 6).map(float))
)
_weights = st.tuples(*[st.sampled_from([0.0, 0.2, 1.0])] * 2, st.sampled_from([0.1, 1.0]))


def test_score_by_hand():
    table = np.array([[0.1, 30.0], [0.2, 10.0], [0.3, 20.0]])
    # Shares to the best: (0, 1), (½, 0), (1, ½); weights ¾ and ¼.
    assert deployment_scores(table, (3, 1)) == pytest.approx([0.75, 0.625, 0.125])
    assert weighted_pick(table, (3, 1)) == 0
    assert weighted_pick(table, (1, 3)) == 1
    assert single_objective_pick(table, 0) == 0
    assert single_objective_pick(table, 1) == 1


@given(_tables, _weights)
def test_nothing_dominated_is_picked(table: np.ndarray, weights: tuple[float, ...]):
    chosen = table[weighted_pick(table, weights)]
    dominates = (table <= chosen).all(axis=1) & (table < chosen).any(axis=1)
    assert not dominates.any()


@given(_tables, _weights, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table: np.ndarray, weights, random):
    order = list(range(len(table)))
    random.shuffle(order)
    picked = table[weighted_pick(table, weights)]
    assert (table[order][weighted_pick(table[order], weights)] == picked).all()


@given(_tables, _weights)
def test_no_rival_has_a_better_score_than_the_oracle(table: np.ndarray, weights):
    best, scores = oracle(table, weights)
    assert scores[best] == pytest.approx(scores.max())
    picks = [single_objective_pick(table, column) for column in range(3)]
    picks.append(random_pick(len(table), np.random.default_rng(0)))
    assert all(scores[pick] <= scores[best] + 1e-9 for pick in picks)
    assert scores[weighted_pick(table, weights)] == pytest.approx(scores[best])


@pytest.mark.parametrize("weights", [(0, 0), (1, -1), (1,)])
def test_weights_that_compare_nothing_are_refused(weights: tuple[float, ...]):
    with pytest.raises(ValueError, match="weights"):
        deployment_scores(np.ones((2, 2)), weights)


def test_an_objective_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="candidate 1: objective 0 is nan"):
        weighted_pick(np.array([[1.0, 2.0], [np.nan, 1.0]]), (1, 1))
