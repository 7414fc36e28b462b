"""Similarity of devices' data: Wasserstein distances between feature samples (Eq. 19-20)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import ot
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from acme_fleet.config.base import chosen
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line

_MOST_PIVOTS = 100_000_000  # of the network simplex; its default stops samples of 3,500 rows early
_TWIN = 0.05

FeatureSamples = Sequence[Float[np.ndarray, "_ features"]]
"""A device's feature vectors in each place."""
MixingWeights = Float[np.ndarray, "devices devices"]
"""Ŵ: row n holds the weights of n's peers, itself included."""


def transport_distance(
    x: Float[np.ndarray, "n features"], y: Float[np.ndarray, "m features"]
) -> float:
    """Exact 1-Wasserstein distance under the L1 ground cost between two samples (Eq. 19).

    Raises:
        FleetError: if the solver stops before the optimum and the samples differ in size.
    """
    cost = cdist(x, y, metric="cityblock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it would say is read from its log
        distance, log = ot.emd2([], [], cost, numItermax=_MOST_PIVOTS, log=True)
    if log["warning"] is None:
        return float(np.asarray(distance))
    if len(x) == len(y):  # an optimum is then an assignment
        return float(cost[linear_sum_assignment(cost)].mean())
    raise FleetError(
        f"the transport distance between samples of {len(x)} and {len(y)} rows is not exact: "
        f"{one_line(log['warning'])}; set a smaller personalization.feature_samples"
    )


def distance_matrix(
    samples: Sequence[Float[np.ndarray, "_ features"]],
) -> Float[np.ndarray, "devices devices"]:
    """Distances between all pairs of devices, zero on the diagonal."""
    count = len(samples)
    distances = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            distances[i, j] = distances[j, i] = transport_distance(samples[i], samples[j])
    return distances


def debias(
    distances: Float[np.ndarray, "devices devices"],
    samples: Sequence[Float[np.ndarray, "_ features"]],
) -> Float[np.ndarray, "devices devices"]:
    """Remove the sampling noise, and each receiver's scale (a named deviation, METHOD 8).

    Between small samples in many dimensions most of the distance is noise: two samples of one
    distribution are far apart too. The mean distance between the halves of either sample is
    taken off, and negative results are zero. Each row is then divided by a scale of its own, see
    :func:`receiver_scale`, so that no device can change the scale of all the others. For the same
    reason no device's halves count as further apart than twice the (lower) median of all.

    Returns:
        Row = receiver; the two directions may differ.
    """
    halves = np.array([transport_distance(s[::2], s[1::2]) if len(s) > 1 else 0.0 for s in samples])
    noise = np.minimum(halves, 2 * lower_median(halves))
    rest = np.maximum(distances - (noise[:, None] + noise[None, :]) / 2, 0.0)
    np.fill_diagonal(rest, 0.0)
    scales = [receiver_scale(row, own) for row, own in zip(rest, noise, strict=True)]
    return rest / np.array(scales)[:, None]


def receiver_scale(distances: Float[np.ndarray, " devices"], noise: float) -> float:
    """The distance that counts as 1 for a receiver: the lower median of those above its noise.

    Up to a twentieth of its own split-half distance a peer cannot be told from a twin, and sets no
    scale where another peer is further away.

    Args:
        distances: to all devices, debiased. noise: the receiver's own split-half distance.
    """
    positive = distances[distances > 0]
    told_apart = positive[positive > _TWIN * noise]
    return lower_median(told_apart if told_apart.size else positive) if positive.size else 1.0


def lower_median(values: Float[np.ndarray, " values"]) -> float:
    """The median; of an even number of values the smaller one of the two in the middle."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def mixing_weights(
    distances: Float[np.ndarray, "devices devices"], temperature: float = 1.0
) -> Float[np.ndarray, "devices devices"]:
    """Ŵ: w = 1/(1 + distance), made symmetric, softmax over each row (Eq. 19-20).

    Args:
        distances: the two directions may differ.
        temperature: τ of the softmax; 1 is the paper's.

    Returns:
        Row n holds the weights of n's peers, itself included.
    """
    similarity = 1.0 / (1.0 + distances)
    # Read element by element: sqrt(w_ij · w_ji).
    symmetric = np.sqrt(similarity * similarity.T)
    scores = np.exp((symmetric - symmetric.max(axis=1, keepdims=True)) / temperature)
    return scores / scores.sum(axis=1, keepdims=True)


def _literal(samples: FeatureSamples, temperature: float) -> MixingWeights:
    return mixing_weights(distance_matrix(samples), temperature)


def _debiased(samples: FeatureSamples, temperature: float) -> MixingWeights:
    return mixing_weights(debias(distance_matrix(samples), samples), temperature)


def _equal(samples: FeatureSamples, temperature: float) -> MixingWeights:
    return np.full((len(samples), len(samples)), 1 / len(samples))


SIMILARITIES: dict[str, Callable[[FeatureSamples, float], MixingWeights]] = {
    "debiased": _debiased,
    "literal": _literal,
    "none": _equal,
}
"""Ŵ from feature samples and τ, by ``personalization.similarity``. A new one is an entry here."""


def who_listens_to_whom(
    samples: FeatureSamples, similarity: str, temperature: float
) -> MixingWeights:
    """Ŵ from feature samples, by distances as they are or debiased (Eq. 19-20), or all equal.

    Raises:
        FleetError: if there is no such similarity.
    """
    return chosen(SIMILARITIES, similarity, "personalization.similarity")(samples, temperature)
