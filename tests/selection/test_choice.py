"""The rivals of the choice, the oracles and the figures of section IV-B3."""

import itertools

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import FleetError
from acme_fleet.selection.choice import match
from acme_fleet.selection.front import exact_front, grid_coordinates
from acme_research.rivals.selection import (
    efficiency_ratio,
    greedy_accuracy,
    greedy_size,
    oracle,
    random_choice,
    trade_off_scores,
    window_oracle,
)

LOSSES = np.array([0.3, 0.1, 0.1, 0.5, 0.05])
SIZES = np.array([20, 30, 25, 30, 90])


def test_greedy_by_hand() -> None:
    assert greedy_accuracy(LOSSES, SIZES, 100, "c") == 4
    assert greedy_accuracy(LOSSES, SIZES, 30, "c") == 2  # as good as 1, and smaller
    assert greedy_accuracy(LOSSES, SIZES, 24, "c") == 0
    assert greedy_size(LOSSES, SIZES, 90, "c") == 4
    assert greedy_size(LOSSES, SIZES, 89, "c") == 1  # as large as 3, and better
    assert greedy_size(LOSSES[::-1], SIZES[::-1], 89, "c") == 3
    assert greedy_size(LOSSES, SIZES, 25, "c") == 2


def test_random_draws_all_that_fit_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    drawn = [random_choice(SIZES, 30, "c", generator) for _ in range(400)]
    counts = np.bincount(drawn, minlength=5)
    assert counts[4] == 0
    assert counts[:4].min() > 60  # 100 expected
    again = np.random.default_rng(0)
    assert drawn[:20] == [random_choice(SIZES, 30, "c", again) for _ in range(20)]


def test_everyone_refuses_when_nothing_fits() -> None:
    scores = -LOSSES
    calls = [
        lambda: greedy_accuracy(LOSSES, SIZES, 19, "edge-1"),
        lambda: greedy_size(LOSSES, SIZES, 19, "edge-1"),
        lambda: random_choice(SIZES, 19, "edge-1", np.random.default_rng(0)),
        lambda: oracle(scores, SIZES, 19, "edge-1"),
        lambda: window_oracle(scores, LOSSES, SIZES, 19, 0.1, "edge-1"),
    ]
    for call in calls:
        with pytest.raises(FleetError, match=r"'edge-1'.* is 20 bytes and the limit is 19 bytes"):
            call()


def test_score_is_the_papers() -> None:
    """The authors' own choices (METHOD 10), beside a reference model that costs 1."""
    accuracies = np.array([0.896, 0.915, 0.913, 0.92])
    sizes = np.array([0.667, 0.750, 0.750, 1.0])
    energies = np.array([0.569, 0.649, 0.716, 1.0])
    expected = [0.278, 0.2155, 0.180, -0.08]
    np.testing.assert_allclose(trade_off_scores(accuracies, energies, sizes), expected, atol=1e-9)
    in_other_units = trade_off_scores(accuracies, 3.6e6 * energies, 86e6 * sizes)
    np.testing.assert_allclose(in_other_units, expected, atol=1e-9)


def test_efficiency_ratio() -> None:
    assert efficiency_ratio(np.array([0.9, 0.6]), np.array([3.0, 0.5])).tolist() == pytest.approx(
        [0.3, 1.2]
    )


@given(st.integers(0, 10**6), st.integers(1, 15), st.sampled_from([0.05, 0.2, 1.0]))
def test_oracles_equal_brute_force(seed: int, count: int, window: float) -> None:
    generator = np.random.default_rng(seed)
    losses = generator.integers(0, 10, count) / 10
    sizes = generator.integers(1, 9, count)
    scores = generator.integers(-5, 6, count) / 5
    limit = int(generator.integers(sizes.min(), 10))
    fits = [i for i in range(count) if sizes[i] <= limit]
    best = oracle(scores, sizes, limit, "c")
    assert best in fits
    assert (-scores[best], sizes[best]) == min((-scores[i], sizes[i]) for i in fits)

    psi = grid_coordinates(losses[fits][:, None], window)[:, 0]
    inside = [i for i, k in zip(fits, psi, strict=True) if k == 1]
    near = window_oracle(scores, losses, sizes, limit, window, "c")
    assert near in inside
    assert (-scores[near], sizes[near]) == min((-scores[i], sizes[i]) for i in inside)
    assert scores[near] <= scores[best]


def test_no_rule_beats_the_same_window_oracle_and_it_bounds_eq_13() -> None:
    """The oracle is over what Eq. 13 may choose from; else the measured ratio means nothing."""
    for seed in range(40):
        generator = np.random.default_rng(seed)
        losses, energies, sizes = generator.random((3, 30)) + 0.05
        table = np.stack([losses, energies, sizes], axis=1)
        scores = trade_off_scores(1 - losses, energies, sizes)
        limit = float(np.quantile(sizes, 0.7))
        best = window_oracle(scores, losses, sizes, limit, 0.1, "c")
        result = match(table, sizes, limit, 0.1, "c")
        assert scores[result.chosen] <= scores[best]
        assert best in result.front


def test_default_rule_is_near_the_oracle_and_beats_the_literal_one() -> None:
    """The claim of the benchmark ``selection_quality`` on a small scale: saturating accuracy."""
    width, depth = (a.ravel() for a in np.meshgrid(np.linspace(0.25, 1, 12), np.arange(1, 13)))
    share = width * depth / 12
    accuracies = 0.95 * (1 - np.exp(-6 * (share**0.6 + 0.1)))
    energies, sizes = (1 + 2 * share) * (1 + 5 * share), 0.05 + share
    table = np.stack([1 - accuracies, energies, sizes], axis=1)
    scores = trade_off_scores(accuracies, energies, sizes)
    sums = dict.fromkeys(["nearest", "literal", "oracle", "greedy"], 0.0)
    for limit, window in itertools.product(np.linspace(0.2, 1.05, 18), [0.02, 0.05, 0.1, 0.2]):
        best = window_oracle(scores, 1 - accuracies, sizes, limit, window, "c")
        sums["oracle"] += scores[best]
        sums["nearest"] += scores[match(table, sizes, limit, window, "c").chosen]
        sums["literal"] += scores[match(table, sizes, limit, window, "c", "literal").chosen]
        sums["greedy"] += scores[greedy_accuracy(1 - accuracies, sizes, limit, "c")]
    assert 0.98 * sums["oracle"] < sums["nearest"] <= sums["oracle"]
    assert sums["literal"] < sums["nearest"]
    assert sums["nearest"] > 1.3 * sums["greedy"]


def test_front_has_all_of_the_hypervolume() -> None:
    table = np.random.default_rng(1).random((60, 3))
    on_front = exact_front(table)
    assert 0 < on_front.sum() < 60
    whole, front, less = (
        moocore.hypervolume(rows, ref=1.0) for rows in (table, table[on_front], table[on_front][1:])
    )
    assert front == pytest.approx(whole)
    assert less < whole
    assert moocore.is_nondominated(table).sum() == on_front.sum()
