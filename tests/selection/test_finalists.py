"""Finalists are spread over the front, and the choice among recovered ones is by the rule."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.config.backbone import Rule
from acme_fleet.cost.variant import Variant
from acme_fleet.selection.choice import distances, match
from acme_fleet.selection.finalists import choose_recovered, finalists
from acme_fleet.selection.front import exact_front, worst

_RULES: list[Rule] = ["nearest", "literal"]
_TABLES = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(
            st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 9)),
            min_size=n,
            max_size=n,
        ),
        st.lists(
            st.tuples(st.integers(1, 4), st.sampled_from(["float32", "int8"])),
            min_size=n,
            max_size=n,
            unique=True,
        )
        if n <= 8
        else st.just([(d, "float32") for d in range(1, n + 1)]),
    )
)


@given(_TABLES, st.integers(1, 5), st.sampled_from(_RULES), st.sampled_from([0.5, 2.0, 50.0]))
def test_finalists_walk_the_front_interval_by_interval(table, count, rule, window) -> None:
    objectives = np.array(table[0], dtype=float)
    variants = [Variant(1.0, depth, precision=precision) for depth, precision in table[1]]
    limit = int(np.median(objectives[:, 2]))
    found = match(objectives, objectives[:, 2], limit, window, "c", rule)
    shapes = finalists(objectives, variants, found, count, rule)
    assert shapes[0] == variants[found.chosen].trained
    assert len(set(shapes)) == len(shapes) <= count
    assert {shape.precision for shape in shapes} == {"float32"}

    # The same by hand: a queue of shapes for each interval, taken from in turn.
    subset = objectives[found.feasible]
    far = np.round(distances(subset, found.coordinates, rule, worst(objectives)), 12)
    intervals = found.coordinates[:, 0]
    rows = sorted(
        np.flatnonzero(exact_front(subset)).tolist(),
        key=lambda row: (intervals[row], far[row], subset[row, 0], subset[row, 2], row),
    )
    queues: dict[int, list[Variant]] = defaultdict(list)
    for row in rows:
        shape = variants[found.feasible[row]].trained
        if all(shape not in queue for queue in queues.values()):
            queues[int(intervals[row])].append(shape)
    expected = []
    while len(expected) < count and any(queues.values()):
        for interval in sorted(queues):
            expected += queues[interval][:1]
            queues[interval] = queues[interval][1:]
    assert shapes == expected[:count]


@given(_TABLES, st.sampled_from(_RULES), st.randoms(use_true_random=False))
def test_choice_after_recovery_is_by_the_rule_among_the_recovered(table, rule, random) -> None:
    objectives = np.array(table[0], dtype=float)
    limit = int(np.median(objectives[:, 2]))
    found = match(objectives, objectives[:, 2], limit, 1.0, "c", rule)
    unchanged = choose_recovered(objectives, found, objectives[:, 0].copy(), 1.0, rule)
    assert unchanged.chosen == found.chosen
    losses = np.array([random.choice([np.nan, random.random()]) for _ in objectives])
    after = choose_recovered(objectives, found, losses, 1.0, rule)
    tried = found.feasible[np.isfinite(losses[found.feasible])]
    assert after.chosen in (tried if tried.size else [found.chosen])
    assert after.front is found.front
    window = 1e-6  # only the best of them competes, and what is as good within the window
    if tried.size and rule == "nearest" and np.ptp(losses[tried]) > 1e-3:
        best = choose_recovered(objectives, found, losses, window, rule).chosen
        assert losses[best] == pytest.approx(losses[tried].min(), abs=window)
