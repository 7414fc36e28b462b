"""Chance of changes: level and power, against known tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from acme_fleet.updates.chance import classes_chance, features_chance, gain_chance, hits_chance


def test_classes_as_the_chi_squared_test_where_there_are_many():
    draw = np.random.default_rng(0)
    for new in ([90, 110, 100], [80, 120, 100], [70, 130, 100]):
        old = np.array([100, 100, 100])
        found = classes_chance(old, np.array(new), draw)
        expected = float(chi2_contingency(np.array([old, new])).pvalue)
        assert found == pytest.approx(expected, abs=0.1)


def test_a_class_that_nobody_has_changes_nothing():
    one, other = np.array([5, 0, 7]), np.array([6, 0, 6])
    seeds = np.random.default_rng(1), np.random.default_rng(1)
    with_it = classes_chance(one, other, seeds[0])
    assert with_it == classes_chance(one[[0, 2]], other[[0, 2]], seeds[1])


def _features(draw: np.random.Generator, moved: float) -> float:
    old, new = draw.normal(size=(25, 4)), draw.normal(size=(25, 4)) + moved
    return features_chance(old, new, draw)


def _classes(draw: np.random.Generator, moved: float) -> float:
    shares = np.array([0.4, 0.3, 0.3])
    other = shares + np.array([-moved, moved, 0]) * 0.4
    return classes_chance(draw.multinomial(60, shares), draw.multinomial(60, other), draw)


@pytest.mark.parametrize("test", [_features, _classes])
def test_alike_samples_are_told_to_differ_as_rarely_as_the_level_says(
    test: Callable[[np.random.Generator, float], float],
):
    draw = np.random.default_rng(2)
    alike = [test(draw, 0.0) < 0.05 for _ in range(40)]
    assert sum(alike) <= 6  # 2 are expected; more than 6 in 1 of 300 seeds
    assert sum(test(draw, 1.0) < 0.05 for _ in range(10)) >= 9


def test_hits_and_gains():
    assert hits_chance((8, 10), (80, 100)) == 1
    assert hits_chance((19, 20), (10, 20)) < 0.01
    before = np.array([False] * 10 + [True] * 20)
    assert gain_chance(before, np.ones(30, bool)) == pytest.approx(0.5**10)
    assert gain_chance(before, ~before) > 0.9
    assert gain_chance(before, before) == 1
