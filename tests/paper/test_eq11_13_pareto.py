"""Eq. 11-13: grid coordinates, Pareto Front Grid, front and choice, against brute force."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from acme_fleet.config.backbone import Rule
from acme_fleet.errors import FleetError
from acme_fleet.selection.choice import choose, match, match_many
from acme_fleet.selection.front import (
    exact_front,
    front,
    grid_coordinates,
    interval_count,
    interval_end,
    pareto_front_grid,
)

RULES: list[Rule] = ["nearest", "literal"]
shapes = st.tuples(st.integers(1, 12), st.integers(2, 4))
coarse = hnp.arrays(np.int64, shapes, elements=st.integers(0, 5)).map(lambda a: a / 5)
fine = hnp.arrays(float, shapes, elements=st.floats(0, 1, width=32))
tables = st.one_of(coarse, fine)  # `coarse` is full of ties, duplicates and constant columns
windows = st.sampled_from([0.02, 0.1, 0.2, 0.5, 3.0])


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_front(rows: np.ndarray) -> list[bool]:
    return [not any(dominates(other, row) for other in rows) for row in rows]


def brute_grid(coordinates: np.ndarray) -> list[bool]:
    """Eq. 12 as METHOD reads it, candidate by candidate."""
    kept = []
    for row in coordinates:
        undercut = []
        for objective in range(coordinates.shape[1]):
            others = [i for i in range(coordinates.shape[1]) if i != objective]
            column = [other for other in coordinates if (other[others] == row[others]).all()]
            undercut.append(any(other[objective] < row[objective] for other in column))
        kept.append(not all(undercut))
    return kept


def brute_choice(
    rows: np.ndarray, coordinates: np.ndarray, rule: Rule, scale: np.ndarray
) -> tuple[float, ...]:
    """Distance, loss and size of the best candidate of the front in the first interval."""
    kept = [a and b for a, b in zip(brute_grid(coordinates), brute_front(rows), strict=True)]
    best_loss = min(row[0] for row, on_front in zip(rows, kept, strict=True) if on_front)
    best = next(i for i, row in enumerate(rows) if kept[i] and row[0] == best_loss)
    keys = []
    for i, row in enumerate(rows):
        if not kept[i] or coordinates[i, 0] != coordinates[best, 0]:
            continue
        if rule == "literal":
            distance = float(sum(abs(c - 1) for c in coordinates[i]))
        else:
            gaps = row - rows.min(axis=0)
            distance = float(sum(g / s for g, s in zip(gaps, scale, strict=True) if s > 0))
        keys.append((round(distance, 9), float(row[0]), float(row[-1])))
    return min(keys)


def test_interval_count_by_hand() -> None:
    assert interval_count(np.array([0.1, 0.45]), 0.1) == 4
    assert interval_count(np.array([0.1, 0.45]), 1.0) == 1
    assert interval_count(np.array([0.3, 0.3, 0.3]), 0.1) == 1
    # (0.9 - 0.6) / 0.1 is 3.0000000000000004 in floats and 3 on paper.
    assert interval_count(np.array([0.6, 0.9]), 0.1) == 3
    assert interval_count(np.array([0.0, 1.0]), 1e-320) > 10**15


@pytest.mark.parametrize("window", [0.0, -0.1, math.nan, math.inf])
def test_interval_count_refuses_windows(window: float) -> None:
    with pytest.raises(ValueError, match="window must be positive"):
        interval_count(np.array([0.1, 0.2]), window)


def test_coordinates_by_hand() -> None:
    """Losses 0 to 1, window 0.25: four intervals in every objective, the constant one in one."""
    losses = [0.0, 0.2, 0.26, 0.51, 0.76, 1.0]
    energies = [100.0, 124.0, 126.0, 149.0, 176.0, 200.0]
    table = np.stack([losses, energies, np.full(6, 7.0)], axis=1)
    expected = [[1, 1, 1], [1, 1, 1], [2, 2, 1], [3, 2, 1], [4, 4, 1], [4, 4, 1]]
    assert grid_coordinates(table, 0.25).tolist() == expected


@given(tables, windows)
def test_coordinates_follow_eq_11(table: np.ndarray, window: float) -> None:
    coordinates = grid_coordinates(table, window)
    count = interval_count(table[:, 0], window)
    for column, own in zip(table.T, coordinates.T, strict=True):
        spread = float(np.ptp(column))
        if spread == 0:
            assert (own == 1).all()
            continue
        sigma = 1e-9 * spread
        width = (spread + 2 * sigma) / count
        exact = (column - column.min() + sigma) / width
        # At a border, rounding decides; elsewhere it must be the ceiling.
        inside = np.abs(exact - np.round(exact)) > 1e-11 * count
        np.testing.assert_array_equal(own[inside], np.ceil(exact)[inside])
        assert own[np.argmin(column)] == 1
        assert own[np.argmax(column)] == count


@given(tables, windows)
def test_first_interval_is_no_wider_than_the_window(table: np.ndarray, window: float) -> None:
    near = table[grid_coordinates(table, window)[:, 0] == 1, 0]
    assert near.max() - near.min() <= window * (1 + 1e-9)


@given(tables, windows)
def test_end_of_the_first_interval_parts_it_from_the_others(
    table: np.ndarray, window: float
) -> None:
    end, losses = interval_end(table[:, 0], window), table[:, 0]
    first, rounding = grid_coordinates(table, window)[:, 0] == 1, 1e-8 * float(np.ptp(losses))
    assert (losses[first] <= end + rounding).all()
    assert (losses[~first] >= end - rounding).all()


@given(
    hnp.arrays(
        np.int64, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=st.integers(1, 4)
    )
)
def test_grid_equals_brute_force(coordinates: np.ndarray) -> None:
    assert pareto_front_grid(coordinates).tolist() == brute_grid(coordinates)


@given(tables, windows)
def test_front_equals_brute_force(table: np.ndarray, window: float) -> None:
    exact = brute_front(table)
    assert exact_front(table).tolist() == exact
    on_grid = brute_grid(grid_coordinates(table, window))
    assert front(table, window).tolist() == [a and b for a, b in zip(on_grid, exact, strict=True)]


def test_grid_and_exact_front_each_remove_what_the_other_keeps() -> None:
    """Two intervals of 0.3. The fourth is undercut in all three; the first dominates the fifth."""
    table = np.array(
        [[0.3, 0.9, 0.9], [0.9, 0.3, 0.9], [0.9, 0.9, 0.3], [0.61, 0.61, 0.61], [0.31, 0.9, 0.9]]
    )
    grid = pareto_front_grid(grid_coordinates(table, 0.3))
    assert grid.tolist() == [True, True, True, False, True]
    assert exact_front(table).tolist() == [True, True, True, True, False]
    assert front(table, 0.3).tolist() == [True, True, True, False, False]


@given(tables, windows, st.sampled_from(RULES))
def test_choice_equals_brute_force(table: np.ndarray, window: float, rule: Rule) -> None:
    coordinates, scale = grid_coordinates(table, window), table.max(axis=0)
    chosen = choose(table, window, rule)
    far = coordinates[chosen] - 1 if rule == "literal" else table[chosen] - table.min(axis=0)
    units = np.ones(table.shape[1]) if rule == "literal" else np.where(scale > 0, scale, 1)
    expected = brute_choice(table, coordinates, rule, scale)
    assert (far / units).sum() == pytest.approx(expected[0], abs=1e-8)
    assert front(table, window)[chosen]
    assert coordinates[chosen, 0] == 1
    if rule == "literal":  # distances are integers: ties are exact
        assert (table[chosen, 0], table[chosen, -1]) == expected[1:]


def test_nearest_and_literal_by_hand() -> None:
    """K = 1: all grid coordinates are equal, and the literal rule can only be greedy."""
    table = np.array([[0.10, 10.0, 10.0], [0.12, 3.0, 4.0], [0.15, 2.9, 3.9]])
    assert choose(table, 0.1, "literal") == 0
    # Shares of the worst: (0, .71, .61), (.133, .01, .01), (.333, 0, 0).
    assert choose(table, 0.1, "nearest") == 1
    # In a window that holds the best performer alone, both are greedy.
    assert choose(table, 0.015, "nearest") == choose(table, 0.015, "literal") == 0


def test_literal_distance_is_the_sum_that_eq_13_prints() -> None:
    """Coordinates (1, 4, 1) and (1, 3, 3): 3 and 4 in sum; Euclidean 3 and 2.83."""
    table = np.array([[0.01, 1.0, 0.0], [0.0, 0.6, 0.6], [1.0, 0.0, 1.0]])
    assert grid_coordinates(table, 0.25)[:2].tolist() == [[1, 4, 1], [1, 3, 3]]
    assert choose(table, 0.25, "literal") == 0


def test_a_dominated_candidate_of_the_same_cell_is_not_chosen() -> None:
    table = np.array([[0.1, 2.0, 5.0], [0.1, 1.9, 5.0], [0.9, 0.1, 1.0], [0.5, 9.0, 9.0]])
    assert (grid_coordinates(table, 0.4)[0] == grid_coordinates(table, 0.4)[1]).all()
    assert choose(table, 0.4, "literal") == 1


def test_distances_that_differ_by_rounding_are_ties() -> None:
    """.1 + .2 is more than .3 in floats; on paper it is a tie, and the smaller loss wins."""
    table = np.array([[0.3, 0.0, 0.0], [0.0, 0.1, 0.2], [1.0, 1.0, 1.0]])
    assert choose(table, 9.0, "nearest") == 1


@pytest.mark.parametrize("rule", RULES)
def test_ties_go_to_loss_then_size_then_order(rule: Rule) -> None:
    equal_distance = np.array([[0.4, 0.2, 0.4], [0.2, 0.4, 0.4], [0.4, 0.4, 0.2]])
    for order in itertools.permutations(range(3)):
        assert order[choose(equal_distance[list(order)], 9.0, rule)] == 1
    equal_loss = np.array([[0.2, 0.4, 0.4], [0.2, 0.6, 0.2], [0.3, 0.6, 0.6]])
    assert choose(equal_loss, 9.0, rule) == 1
    assert choose(np.ones((4, 3)), 0.1, rule) == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("row", [[0.3, 2.0, 5.0], [0.0, 0.0, 0.0]])
def test_one_candidate_and_equal_candidates(row: list[float], rule: Rule) -> None:
    for count in (1, 5):
        table = np.array([row] * count)
        assert choose(table, 0.1, rule) == 0
        assert front(table, 0.1).all()
        assert (grid_coordinates(table, 0.1) == 1).all()


@given(tables, windows, st.lists(st.sampled_from([1e-9, 1e-3, 0.7, 3.6, 1e6]), min_size=4))
def test_units_do_not_matter(table: np.ndarray, window: float, factors: list[float]) -> None:
    """Joules or kilowatt hours, bytes or megabytes, loss and window in points or shares."""
    scaled = table * factors[: table.shape[1]]
    scaled_window = window * factors[0]
    coordinates = grid_coordinates(table, window)
    np.testing.assert_array_equal(grid_coordinates(scaled, scaled_window), coordinates)
    # Rounding can make equal products of unequal numbers, never the reverse.
    assert not (front(table, window) & ~front(scaled, scaled_window)).any()
    assert choose(scaled, scaled_window, "literal") == choose(table, window, "literal")
    one, other = choose(scaled, scaled_window), choose(table, window)
    far = ((table - table.min(axis=0)) / np.maximum(table.max(axis=0), 1e-300)).sum(axis=1)
    assert far[one] == pytest.approx(far[other], abs=1e-9)


@given(tables, windows, st.randoms(use_true_random=False))
def test_order_does_not_matter(table: np.ndarray, window: float, shuffler: random.Random) -> None:
    order = list(range(len(table)))
    shuffler.shuffle(order)
    np.testing.assert_array_equal(front(table[order], window), front(table, window)[order])
    for rule in RULES:
        loss_and_size = table[order][choose(table[order], window, rule)][[0, -1]]
        np.testing.assert_array_equal(loss_and_size, table[choose(table, window, rule)][[0, -1]])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    table = np.ones((4, 3))
    table[2, 1] = value
    sizes = np.array([1.0, 2.0, 3.0, 4.0])
    calls = [
        lambda: grid_coordinates(table, 0.1),
        lambda: exact_front(table),
        lambda: front(table, 0.1),
        lambda: choose(table, 0.1),
        lambda: match(table, sizes, 2.0, 0.1, "c"),  # even where candidate 2 does not fit
        lambda: match_many(table[None], sizes, np.array([2.0]), np.array([0]), 0.1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"candidate 2: objective 1 is {value}"):
            call()


def test_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        choose(np.ones((0, 3)), 0.1)


# --- storage limits ---------------------------------------------------------------------------


def sized_tables(count: int, kinds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 40, count) * 1000
    losses = np.round((sizes / 1000) ** -0.5 + generator.uniform(0, 0.1, count), 2)
    energies = generator.integers(1, 30, (kinds, count)) / 30
    return np.stack([np.stack([losses, e, sizes], axis=1) for e in energies]), sizes


def test_a_size_equal_to_the_limit_fits() -> None:
    table = np.array([[0.1, 1.0, 5_300_123], [0.9, 0.5, 4_000_000]])
    sizes = table[:, 2].astype(np.int64)
    assert match(table, sizes, 5_300_123, 0.1, "c").feasible.tolist() == [0, 1]
    assert match(table, sizes, 5_300_122, 0.1, "c").feasible.tolist() == [1]
    limits = np.array([5_300_123, 5_300_122, 4_000_000])
    assert match_many(table[None], sizes, limits, np.zeros(3, int), 0.1).tolist() == [0, 1, 1]


def test_nothing_fits_is_an_error_with_numbers() -> None:
    table = np.array([[0.1, 1.0, 5_300_123], [0.9, 0.5, 4_000_000]])
    sizes = table[:, 2].astype(np.int64)
    numbers = "the smallest, number 1, is 4,000,000 bytes and the limit is 3,999,999 bytes"
    with pytest.raises(FleetError, match=f"cluster 'cameras': no candidate fits; {numbers}"):
        match(table, sizes, 3_999_999, 0.1, "cameras")
    limits = np.array([4_000_000, 3_999_999, 7])
    with pytest.raises(FleetError, match=f"2 of 3 clusters, first number 1: .*{numbers}"):
        match_many(table[None], sizes, limits, np.zeros(3, int), 0.1)
    with pytest.raises(ValueError, match="limit of cluster 1 is not a number"):
        match_many(table[None], sizes, np.array([9e9, math.nan]), np.zeros(2, int), 0.1)


def test_match_is_the_choice_among_those_that_fit() -> None:
    """Ideal, worst and K are those of the feasible; the scale of "nearest" is the whole table's."""
    for seed in range(30):
        (table,), sizes = sized_tables(25, 1, seed)
        result = match(table, sizes, 20_000, 0.2, "c")
        assert result.feasible.tolist() == np.flatnonzero(sizes <= 20_000).tolist()
        subset = table[result.feasible]
        np.testing.assert_array_equal(result.coordinates, grid_coordinates(subset, 0.2))
        assert result.front.tolist() == result.feasible[front(subset, 0.2)].tolist()
        assert result.chosen in result.front
        alone = choose(subset, 0.2, scale=table.max(axis=0))
        assert result.chosen == result.feasible[alone]
        literal = match(table, sizes, 20_000, 0.2, "c", "literal").chosen
        assert literal == result.feasible[choose(subset, 0.2, "literal")]


def test_scale_of_the_whole_table_decides() -> None:
    """That a far larger candidate exists makes a byte cheap, whether it fits or not."""
    few = np.array([[0.20, 1.0, 3.0], [0.25, 1.0, 2.0]])
    assert choose(few, 1.0) == 1  # .05/.25 of loss against 1/3 of size
    many = np.concatenate([few, [[0.25, 1.0, 300.0]]])
    assert match(many, many[:, 2], 3.0, 1.0, "c").chosen == 0


def test_many_break_full_ties_as_one_by_one() -> None:
    table, sizes = np.ones((3, 3)), np.array([3, 1, 2])
    limits = np.array([1, 2, 3])
    expected = [match(table, sizes, float(c), 0.1, "c").chosen for c in limits]
    assert expected == [1, 1, 0]
    assert match_many(table[None], sizes, limits, np.zeros(3, int), 0.1).tolist() == expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_many_equal_one_by_one(seed: int, rule: Rule) -> None:
    kinds = 3
    stack, sizes = sized_tables(30, kinds, seed)
    generator = np.random.default_rng(seed)
    # Every border of a feasible set, from both sides, and anything between.
    edges = np.concatenate([sizes, sizes - 1, generator.integers(sizes.min(), 45_000, 60)])
    limits = np.maximum(edges, sizes.min())
    types = generator.integers(0, kinds, len(limits))
    expected = [
        match(stack[t], sizes, float(c), 0.15, "c", rule).chosen
        for c, t in zip(limits, types, strict=True)
    ]
    assert len(set(expected)) > 3
    assert match_many(stack, sizes, limits, types, 0.15, rule).tolist() == expected
    assert match_many(stack, sizes, limits[:0], types[:0], 0.15, rule).tolist() == []


def test_energy_columns_that_differ_by_a_factor_choose_alike() -> None:
    stack, sizes = sized_tables(40, 1, seed=5)
    stretched = stack * np.array([1.0, 37.5, 1.0])
    limits = np.arange(sizes.min(), 42_000, 500)
    zeros = np.zeros(len(limits), int)
    one = match_many(stack, sizes, limits, zeros, 0.1)
    np.testing.assert_array_equal(match_many(stretched, sizes, limits, zeros, 0.1), one)
    assert len(set(one.tolist())) > 3


@pytest.mark.parametrize("window", [1e-9, 1e-12, 1e-300, 5e-324, 1e300])
@pytest.mark.parametrize("rule", ["nearest", "literal"])
def test_windows_near_zero_take_the_best_and_huge_ones_compare_all(
    window: float, rule: Rule
) -> None:
    """However narrow the intervals: the ideal is in the first, and nothing that is worse is."""
    table = np.array(
        [[0.5, 9.0, 90.0], [0.5 + 1e-6, 1.0, 10.0], [0.9, 2.0, 20.0], [0.5, 8.0, 95.0]]
    )
    coordinates = grid_coordinates(table, window)
    assert coordinates.min(axis=0).tolist() == [1, 1, 1]
    assert (coordinates >= 1).all()
    near = np.flatnonzero(coordinates[:, 0] == 1).tolist()
    assert near == ([0, 1, 2, 3] if window > 1 else [0, 3])
    found = match(table, table[:, 2], 100.0, window, "north", rule)
    assert found.chosen in near
    many = match_many(table[None], table[:, 2], np.array([100.0]), np.array([0]), window, rule)
    assert many.tolist() == [found.chosen]
    assert interval_end(table[:, 0], window) >= 0.5


def test_narrow_intervals_leave_coordinates_of_ordinary_windows_alone() -> None:
    random = np.random.default_rng(0)
    table = random.random((50, 3))
    for window in (1e-6, 1e-3, 0.1):
        count = interval_count(table[:, 0], window)
        share = (table - table.min(axis=0)) / np.ptp(table, axis=0)
        exact = (share + 1e-9) * count / (1 + 2e-9)
        expected = np.clip(np.ceil(exact * (1 - 1e-12)), 1, count)
        assert (grid_coordinates(table, window) == expected).all()
