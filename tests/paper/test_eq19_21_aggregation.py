"""Eq. 19-21: distances between devices' features, mixing weights, mixed importance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from acme_fleet.edge import similarity
from acme_fleet.edge.similarity import (
    debias,
    distance_matrix,
    lower_median,
    mixing_weights,
    receiver_scale,
    transport_distance,
    who_listens_to_whom,
)
from acme_fleet.errors import FleetError
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.messages.peer_weights import among
from acme_fleet.personalization.importance import aggregate

COORDINATES = st.floats(-100, 100, allow_subnormal=False)


def matrices(elements: st.SearchStrategy[float], most: int = 6) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, most).flatmap(lambda n: arrays(np.float64, (n, n), elements=elements))


# --- the distance -----------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32))
def test_distance_is_the_best_assignment_of_equal_samples(n: int, dims: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, n, dims))
    cost = cdist(x, y, metric="cityblock")
    rows, columns = linear_sum_assignment(cost)
    assert transport_distance(x, y) == pytest.approx(cost[rows, columns].mean())


@settings(max_examples=50)
@given(
    st.lists(COORDINATES, min_size=1, max_size=12), st.lists(COORDINATES, min_size=1, max_size=12)
)
def test_distance_in_one_dimension_is_scipys(x: list[float], y: list[float]) -> None:
    ours = transport_distance(np.array(x)[:, None], np.array(y)[:, None])
    assert ours == pytest.approx(wasserstein_distance(x, y), abs=1e-9)


def test_distance_is_a_metric() -> None:
    random = np.random.default_rng(0)
    x, y, z = (random.normal(shift, size=(n, 4)) for shift, n in ((0, 7), (1, 9), (2, 5)))
    assert transport_distance(x, x[::-1]) == pytest.approx(0)
    assert transport_distance(x, y) == pytest.approx(transport_distance(y, x))
    assert transport_distance(x, z) <= transport_distance(x, y) + transport_distance(y, z)
    assert transport_distance(x, x + 3) == pytest.approx(12)  # L1: four coordinates by three


def test_matrix_holds_every_pair() -> None:
    random = np.random.default_rng(0)
    samples = [random.normal(i, size=(5 + i, 3)) for i in range(4)]
    distances = distance_matrix(samples)
    for i, j in np.ndindex(4, 4):
        expected = 0 if i == j else transport_distance(samples[i], samples[j])
        assert distances[i, j] == pytest.approx(expected)


@pytest.mark.slow
def test_distance_between_large_samples_is_scipys_optimum() -> None:
    """At 3,500 rows the solver's own limit stopped it 1.5 % above the optimum."""
    x, y = np.random.default_rng(0).normal(size=(2, 3500, 8))
    cost = cdist(x, y, metric="cityblock")
    optimum = cost[linear_sum_assignment(cost)].mean()
    assert transport_distance(x, y) == pytest.approx(optimum, rel=1e-9)


def test_a_solver_that_stops_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 60, 8))
    exact = transport_distance(x, y)
    monkeypatch.setattr(similarity, "_MOST_PIVOTS", 5)
    assert transport_distance(x, y) == pytest.approx(exact, rel=1e-9)
    with pytest.raises(FleetError, match=r"samples of 60 and 59 rows is not exact.*smaller"):
        transport_distance(x, y[1:])


# --- debiasing --------------------------------------------------------------------------------


def two_groups(dims: int = 64, count: int = 40) -> list[np.ndarray]:
    """Three devices of one distribution, two of another, in many dimensions."""
    random = np.random.default_rng(0)
    return [random.normal(shift, size=(count, dims)) for shift in (0, 0, 0, 1, 1)]


def test_without_debiasing_peers_of_one_distribution_look_far_apart() -> None:
    """The reason of the deviation: the noise is most of the distance."""
    distances = distance_matrix(two_groups())
    assert distances[0, 1] > 0.6 * distances[0, 3]


def test_debiasing_leaves_what_the_distributions_differ_by() -> None:
    samples = two_groups()
    rest = debias(distance_matrix(samples), samples)
    same = [rest[i, j] for i, j in ((0, 1), (0, 2), (1, 2), (3, 4))]
    other = [rest[i, j] for i in (0, 1, 2) for j in (3, 4)]
    assert max(same) < 0.1
    assert min(other) > 0.8
    for row in rest:  # each receiver has a scale of its own
        assert lower_median(row[row > 0.1]) == pytest.approx(1)
    assert (rest.diagonal() == 0).all()
    weights = mixing_weights(rest, temperature=0.1)
    assert weights[0, :3].sum() > 0.95
    assert weights[3, 3:].sum() > 0.95


def test_debiasing_by_hand() -> None:
    """Halves of a device (every other sample) are 1, 1.5 and 0 apart: half of it is taken off.

    What is left in a row is divided by the smaller one of its two numbers.
    """
    samples = [np.array([[0.0], [1.0]]), np.array([[50.0], [51.5]]), np.array([[9.0]])]
    rest = debias(np.array([[0.0, 50, 8], [50, 0, 40], [8, 40, 0]]), samples)
    left = np.array([[0, 50 - 1.25, 8 - 0.5], [50 - 1.25, 0, 40 - 0.75], [8 - 0.5, 40 - 0.75, 0]])
    np.testing.assert_allclose(rest, left / np.array([[7.5], [39.25], [7.5]]))


def test_debiasing_when_all_is_noise() -> None:
    random = np.random.default_rng(0)
    samples = [random.normal(size=(20, 30)) for _ in range(3)]
    rest = debias(np.full((3, 3), 1e-3), samples)
    assert not rest.any()
    np.testing.assert_allclose(mixing_weights(rest), 1 / 3)


# --- the weights ------------------------------------------------------------------------------


@given(matrices(st.floats(0, 1e300)), st.floats(1e-3, 100))
def test_rows_sum_to_one_for_any_distances(distances: np.ndarray, temperature: float) -> None:
    weights = mixing_weights(distances, temperature)
    assert weights.shape == distances.shape
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)


@given(matrices(st.floats(0, 1e6)))
def test_only_the_symmetric_part_of_the_distances_counts(distances: np.ndarray) -> None:
    np.testing.assert_allclose(mixing_weights(distances), mixing_weights(distances.T))


@settings(max_examples=50)
@given(matrices(st.floats(0, 50)), st.sampled_from([0.1, 1.0, 3.0]))
def test_weights_equal_the_formula(distances: np.ndarray, temperature: float) -> None:
    """Row softmax of √(w_ij · w_ji)/τ with w = 1/(1 + distance), written out entry by entry."""
    n = len(distances)
    score = np.empty((n, n))
    for i, j in np.ndindex(n, n):
        w_ij, w_ji = 1 / (1 + distances[i, j]), 1 / (1 + distances[j, i])
        score[i, j] = np.exp(np.sqrt(w_ij * w_ji) / temperature)
    expected = [[score[i, j] / score[i].sum() for j in range(n)] for i in range(n)]
    np.testing.assert_allclose(mixing_weights(distances, temperature), expected)


def test_nearer_peers_weigh_more_and_a_low_temperature_sharpens() -> None:
    distances = np.array([[0.0, 1, 4], [1, 0, 2], [4, 2, 0]])
    soft, sharp = mixing_weights(distances), mixing_weights(distances, 0.1)
    for weights in (soft, sharp):
        assert weights[0, 0] > weights[0, 1] > weights[0, 2]
    assert sharp[0, 0] > 0.95 > 0.5 > soft[0, 0]


# --- one of five lies ---


def _five(seed: int) -> list[np.ndarray]:
    """Devices of two distributions; rows of one length, as a backbone's features are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(2, 16))
    samples = [centres[group] + random.normal(size=(12, 16)) for group in (0, 0, 1, 1, 1)]
    return [4 * s / np.linalg.norm(s, axis=1, keepdims=True) for s in samples]


_LIES = {
    "huge": lambda s: s * 1e6,
    "largest that is plausible": lambda s: s * 10,
    "tiny": lambda s: s * 1e-6,
    "zeros": lambda s: s * 0,
    "negative": lambda s: -s,
    "halves far apart": lambda s: s + 10 * np.where(np.arange(len(s)) % 2, 1, -1)[:, None],
    "one row": lambda s: s[:1],
    "all rows alike": lambda s: np.repeat(s[:1], len(s), axis=0),
}


@pytest.mark.parametrize("lie", _LIES)
@pytest.mark.parametrize("kind", ["debiased", "literal", "none"])
def test_honest_devices_weigh_each_other_as_if_the_liar_were_not_there(kind: Any, lie: str) -> None:
    """The ratio of an honest peer's weight to the receiver's own.

    By the distances as they are it does not change at all. Debiased, the liar can move a
    receiver's scale to the next of its honest distances and no further: the weight stays between
    those that either of the neighbouring scales gives. And nobody outweighs the receiver itself.
    """
    for seed in range(5):
        samples = _five(seed)
        liar = seed % 5
        honest = [n for n in range(5) if n != liar]
        without = who_listens_to_whom([samples[n] for n in honest], kind, 0.1)
        lying = [_LIES[lie](s) if n == liar else s for n, s in enumerate(samples)]
        weights = who_listens_to_whom(lying, kind, 0.1)
        assert np.isfinite(weights).all()
        among, own = weights[np.ix_(honest, honest)], weights.diagonal()
        assert (weights <= own[:, None] * (1 + 1e-9)).all()
        ratios = among / among.diagonal()[:, None]
        expected = without / without.diagonal()[:, None]
        if kind == "debiased":
            # Twins stay twins, and others stay others.
            assert (np.abs(ratios - expected) < 0.35).all()
            assert ((ratios > 0.5) == (expected > 0.5)).all()
        else:
            np.testing.assert_allclose(ratios, expected, rtol=1e-9)


def test_features_times_a_million_no_longer_flatten_everybodys_weights() -> None:
    """With one scale for all pairs, five devices listened to each other alike."""
    samples = _five(0)
    samples[4] = samples[4] * 1e6
    weights = who_listens_to_whom(samples, "debiased", 0.1)
    assert weights[0, 1] > 0.4  # its twin
    assert weights[0, 2] < 0.1
    assert weights[0, 4] < 0.01
    assert weights[2, 3] > 0.4


@pytest.mark.parametrize("other", [1e30, 1e-30])
def test_of_two_peers_the_nearer_one_sets_the_scale(other: float) -> None:
    row = np.array([0.0, 2.0, other])
    assert receiver_scale(row, noise=1.0) == 2.0


# --- Eq. 21 -----------------------------------------------------------------------------------


def importance_sets(devices: int, layers: dict[str, int], seed: int) -> dict[str, ImportanceSet]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"device-{n}": ImportanceSet.of(
            {layer: torch.rand(size, generator=generator) * 10**n for layer, size in layers.items()}
        )
        for n in range(devices)
    }


def random_weights(devices: int, seed: int) -> np.ndarray:
    weights = np.random.default_rng(seed).random((devices, devices))
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_aggregate_equals_the_dense_formula(devices: int, seed: int) -> None:
    """Q'_n = Σ_i ŵ_ni Q_i, each Q_i scaled to sum 1: one matrix product."""
    sets = importance_sets(devices, {"b": 4, "a": 3}, seed)
    weights = random_weights(devices, seed)
    dense = np.array([q.flat().numpy() for q in sets.values()], dtype=np.float64)
    expected = weights @ (dense / dense.sum(axis=1, keepdims=True))
    mixed = aggregate(sets, weights)
    assert list(mixed) == list(sets)
    for row, name in zip(expected, mixed, strict=True):
        np.testing.assert_allclose(mixed[name]["b"], row[:4], rtol=1e-5)
        np.testing.assert_allclose(mixed[name]["a"], row[4:], rtol=1e-5)


def test_a_loud_device_does_not_outvote_the_others() -> None:
    values = {"quiet": [1.0, 3.0], "loud": [6e6, 2e6]}
    sets = {name: ImportanceSet.of({"a": torch.tensor(q)}) for name, q in values.items()}
    mixed = aggregate(sets, np.full((2, 2), 0.5))
    torch.testing.assert_close(mixed["quiet"]["a"], torch.tensor([0.5, 0.5]))
    assert sets["loud"].normalized().total() == pytest.approx(1)


def test_a_sum_beyond_single_precision_is_scaled_to_one_too() -> None:
    loudest = ImportanceSet.of({"a": torch.full((4,), 3e38), "b": torch.full((2,), 1e-45)})
    assert loudest.normalized().total() == pytest.approx(1)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_what_a_liar_can_do_to_a_mixture_is_bounded_by_its_weight(seed: int, neuron: int) -> None:
    """Q'_n moves by at most 2·ŵ_nm in sum over all neurons, whatever set m sends."""
    sets, weights = importance_sets(5, {"a": 4, "b": 3}, seed), random_weights(5, seed)
    lying = torch.zeros(7)
    lying[neuron] = 3e38
    forged = sets | {"device-4": sets["device-4"].unflatten(lying)}
    honest, moved = aggregate(sets, weights), aggregate(forged, weights)
    for n in range(4):
        name = f"device-{n}"
        change = float((moved[name].flat() - honest[name].flat()).abs().sum())
        assert change <= 2 * weights[n, 4] + 1e-5


def test_alone_with_the_identity_as_weights() -> None:
    sets = importance_sets(3, {"a": 4}, 0)
    mixed = aggregate(sets, np.eye(3))
    for name, own in sets.items():
        assert mixed[name].is_close(own.normalized())


def test_sums_per_neuron_decide_like_sets_per_parameter() -> None:
    """The base of METHOD 8: a few kilobytes instead of megabytes, and exactly the same Q'."""
    random, devices, layers = np.random.default_rng(0), 4, {"a": (5, 27), "b": (3, 12)}
    weights = random_weights(devices, 0)
    full: list[dict[str, Any]] = [
        {layer: random.random(shape) ** 4 for layer, shape in layers.items()}
        for _ in range(devices)
    ]
    sums = {
        f"device-{n}": ImportanceSet.of(
            {layer: torch.tensor(q.sum(axis=1)) for layer, q in own.items()}
        )
        for n, own in enumerate(full)
    }
    mixed = aggregate(sums, weights)
    totals = [sum(q.sum() for q in own.values()) for own in full]
    for n, layer in ((n, layer) for n in range(devices) for layer in layers):
        parameters = sum(weights[n, i] * full[i][layer] / totals[i] for i in range(devices))
        np.testing.assert_allclose(mixed[f"device-{n}"][layer], parameters.sum(axis=1))


@given(matrices(st.floats(0.01, 1)), st.data())
def test_present_renormalises_among_those_who_answered(
    weights: np.ndarray, data: st.DataObject
) -> None:
    weights = weights / weights.sum(axis=1, keepdims=True)
    who = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1).map(sorted))
    assume(len(who) < len(weights) or len(weights) == 1)
    chosen = among(weights, who)
    assert chosen.shape == (len(who), len(who))
    np.testing.assert_allclose(chosen.sum(axis=1), 1)
    for a, i in enumerate(who):  # the proportions between peers stay
        np.testing.assert_allclose(chosen[a] * weights[i, who].sum(), weights[i, who])


@given(matrices(st.floats(0.01, 1)), st.data())
def test_present_counts_old_sets_less_for_others_only(
    weights: np.ndarray, data: st.DataObject
) -> None:
    count = len(weights)
    fresh = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    chosen = among(weights, [*range(count)], fresh)
    np.testing.assert_allclose(chosen.sum(axis=1), 1)
    for i in range(count):
        expected = [weights[i, j] * (1 if i == j else fresh[j]) for j in range(count)]
        np.testing.assert_allclose(chosen[i], np.array(expected) / sum(expected))
