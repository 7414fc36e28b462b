"""Hard limits are never broken, and the smallest relaxation is the smallest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from acme_fleet.selection.limits import Limit, kept, single_relaxations, smallest_relaxation

_LIMITS = [Limit("usd", "USD", 4.0), Limit("ms", "ms", 3.0), Limit("accuracy", "", 2.0, True)]
_values = st.integers(1, 10).flatmap(
    lambda count: arrays(np.float64, (3, count), elements=st.integers(0, 8).map(float))
)


def test_by_hand():
    values = np.array([[6.0, 4.0, 10.0], [3.0, 9.0, 1.0], [2.0, 2.0, 1.0]])
    assert kept(values, _LIMITS).tolist() == [
        [False, True, False],
        [True, False, True],
        [True, True, False],
    ]
    found = smallest_relaxation(values, _LIMITS)
    assert (found.candidate, found.bounds, found.excess) == (0, {"usd": 6.0}, 0.5)
    # 6 USD admit the first, 9 ms the second; less accuracy alone admits nothing.
    assert single_relaxations(values, _LIMITS) == {"usd": 6.0, "ms": 9.0}


def test_equal_keeps_a_limit_and_so_does_what_is_not_known():
    values = np.array([[4.0, np.nan], [3.0, np.nan], [2.0, np.nan]])
    assert kept(values, _LIMITS).all()
    assert smallest_relaxation(values, _LIMITS).bounds == {}


@given(_values)
def test_the_relaxed_limits_admit_the_candidate_and_no_smaller_move_admits_any(values: np.ndarray):
    found = smallest_relaxation(values, _LIMITS)
    relaxed = [
        Limit(limit.name, limit.unit, found.bounds.get(limit.name, limit.bound), limit.at_least)
        for limit in _LIMITS
    ]
    assert kept(values, relaxed)[:, found.candidate].all()
    moves = np.array([limit.excess(row) for limit, row in zip(_LIMITS, values, strict=True)])
    assert found.excess == pytest.approx(moves.sum(axis=0).min())


@given(_values)
def test_each_single_relaxation_admits_a_candidate(values: np.ndarray):
    for name, bound in single_relaxations(values, _LIMITS).items():
        moved = [
            Limit(
                limit.name, limit.unit, bound if limit.name == name else limit.bound, limit.at_least
            )
            for limit in _LIMITS
        ]
        assert kept(values, moved).all(axis=0).any()


def test_without_candidates_there_is_no_relaxation():
    with pytest.raises(ValueError, match="no candidate"):
        smallest_relaxation(np.empty((3, 0)), _LIMITS)
