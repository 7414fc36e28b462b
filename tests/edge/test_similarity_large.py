"""In large clusters devices listen to those alone that a sketch shows as near."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from acme_fleet.edge.similarity import (
    debias,
    distance_matrix,
    mixing_weights,
    near_pairs,
    near_weights,
    who_listens_to_whom,
)
from acme_fleet.messages.peer_weights import MOST_DENSE, Alike

GROUPS = 3


def _samples(count: int, rows: int = 6, features: int = 8) -> list[np.ndarray]:
    """Device n draws from the distribution of group n modulo three."""
    draw = np.random.default_rng(1)
    middles = 3 * draw.normal(size=(GROUPS, features))
    return [draw.normal(size=(rows, features)) + middles[n % GROUPS] for n in range(count)]


@pytest.mark.parametrize("debiased", [True, False])
def test_with_all_as_neighbours_and_landmarks_the_weights_are_the_exact_ones(
    debiased: bool,
) -> None:
    samples = _samples(12)
    distances = distance_matrix(samples)
    exact = mixing_weights(debias(distances, samples) if debiased else distances, 0.1)
    found = near_weights(samples, 0.1, debiased=debiased, landmarks=12, nearest=12)
    np.testing.assert_allclose(found.toarray(), exact)


def test_the_peers_of_a_large_cluster_are_of_the_device_s_own_distribution() -> None:
    count = MOST_DENSE + 1
    weights = who_listens_to_whom(_samples(count), "debiased", 0.1)
    assert isinstance(weights, csr_array)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    receivers, senders = weights.nonzero()
    of_own = (receivers % GROUPS == senders % GROUPS).astype(float)
    assert (weights.data * of_own).sum() / count > 0.99
    assert np.diff(weights.indptr).min() >= 32  # its nearest and itself
    assert weights.nnz <= count * (2 * 32 + 1)


def test_one_device_that_lies_about_its_features_changes_nobody_s_peers() -> None:
    samples = _samples(MOST_DENSE + 1)
    honest = who_listens_to_whom(samples, "debiased", 0.1).toarray()
    samples[7] = 1e6 * np.ones_like(samples[7])
    lied = who_listens_to_whom(samples, "debiased", 0.1).toarray()
    others = np.arange(len(samples)) != 7
    assert lied[others, 7].max() < 1e-3
    own = np.arange(len(samples)) % GROUPS
    within = own[:, None] == own[None, :]
    assert (lied * within)[others].sum(axis=1).min() > 0.9
    assert (honest * within)[others].sum(axis=1).min() > 0.9


def test_pairs_are_those_of_the_nearest_sketches_once() -> None:
    sketches = np.random.default_rng(0).normal(size=(40, 3))
    one, other = near_pairs(sketches, 4)
    apart = np.linalg.norm(sketches[:, None] - sketches[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    expected = {
        (min(i, j), max(i, j)) for i in range(40) for j in np.argsort(apart[i])[:4].tolist()
    }
    found = list(zip(one.tolist(), other.tolist(), strict=True))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_equal_weights_of_a_large_cluster_are_no_matrix() -> None:
    assert isinstance(who_listens_to_whom(_samples(MOST_DENSE + 1), "none", 0.1), Alike)
    assert isinstance(who_listens_to_whom(_samples(5), "none", 0.1), np.ndarray)
