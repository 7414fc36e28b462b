"""Similarity of devices' data: Wasserstein distances between feature samples (Eq. 19-20).

The distances between all pairs of N devices are N² transport problems. In a cluster of more than
:data:`~acme_fleet.messages.peer_weights.MOST_DENSE` devices a device is compared with those alone
that a sketch shows as near, and listens to no others, see :func:`near_weights`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import ot
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist

from acme_fleet.config.base import chosen
from acme_fleet.errors import FleetError
from acme_fleet.messages.peer_weights import MOST_DENSE, Alike, PeerWeights
from acme_fleet.outside import one_line

_MOST_PIVOTS = 100_000_000  # of the network simplex; its default stops samples of 3,500 rows early
_TWIN = 0.05
_LANDMARKS = 32
_NEAREST = 32
_ROWS = 512  # of sketches compared at a time: memory grows with the devices

FeatureSamples = Sequence[Float[np.ndarray, "_ features"]]
"""A device's feature vectors in each place."""


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
    noise = sampling_noise(samples)
    rest = np.maximum(distances - (noise[:, None] + noise[None, :]) / 2, 0.0)
    np.fill_diagonal(rest, 0.0)
    scales = [receiver_scale(row, own) for row, own in zip(rest, noise, strict=True)]
    return rest / np.array(scales)[:, None]


def sampling_noise(samples: FeatureSamples) -> Float[np.ndarray, " devices"]:
    """The distance between the halves of each sample, at most twice the lower median of all."""
    halves = np.array([transport_distance(s[::2], s[1::2]) if len(s) > 1 else 0.0 for s in samples])
    return np.minimum(halves, 2 * lower_median(halves))


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


# --- large clusters ---------------------------------------------------------------------------


def near_weights(
    samples: FeatureSamples,
    temperature: float,
    *,
    debiased: bool,
    landmarks: int = _LANDMARKS,
    nearest: int = _NEAREST,
) -> csr_array:
    """Ŵ among near devices, every other weight zero (Eq. 19-20; a named deviation).

    Each device's exact distances to some landmarks, devices drawn at random, are its sketch: by
    the triangle inequality two devices are at least as far apart as their distances to any
    landmark differ. Exact distances are computed to the devices with the nearest sketches.

    Args:
        samples: a device's feature vectors in each place.
        temperature: τ of the softmax.
        debiased: see :func:`debias`; a receiver's scale is that of its distances to the landmarks.
        landmarks: devices that every device is compared with.
        nearest: devices that a device is compared with by its sketch; those that it is among the
            nearest of come in addition.
    """
    count = len(samples)
    marks = np.sort(np.random.default_rng(0).choice(count, min(landmarks, count), replace=False))
    sketches = np.array([[transport_distance(x, samples[m]) for m in marks] for x in samples])
    one, other = near_pairs(sketches, nearest)
    apart = np.array(
        [transport_distance(samples[i], samples[j]) for i, j in zip(one, other, strict=True)]
    )
    scales = np.ones(count)
    if debiased:
        noise = sampling_noise(samples)
        apart = np.maximum(apart - (noise[one] + noise[other]) / 2, 0.0)
        to_marks = np.maximum(sketches - (noise[:, None] + noise[None, marks]) / 2, 0.0)
        to_marks[marks, np.arange(len(marks))] = 0.0  # a landmark's distance to itself
        rows = zip(to_marks, noise, strict=True)
        scales = np.array([receiver_scale(row, own) for row, own in rows])
    similar = 1 / np.sqrt((1 + apart / scales[one]) * (1 + apart / scales[other]))
    own = np.arange(count)
    scores = np.exp((np.concatenate([similar, similar, np.ones(count)]) - 1) / temperature)
    receivers, senders = np.concatenate([one, other, own]), np.concatenate([other, one, own])
    weights = csr_array((scores, (receivers, senders)), shape=(count, count))
    weights.sort_indices()
    weights.data /= np.repeat(weights.sum(axis=1), np.diff(weights.indptr))
    return weights


def near_pairs(
    sketches: Float[np.ndarray, "devices landmarks"], nearest: int
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pairs of devices of which one is among the ``nearest`` of the other by its sketch.

    Returns:
        The devices with the smaller number, and those with the larger one.
    """
    count, pairs = len(sketches), []
    nearest = min(nearest, count - 1)
    for start in range(0, count, _ROWS):
        rows = np.arange(start, min(start + _ROWS, count))
        apart = cdist(sketches[rows], sketches)
        apart[np.arange(len(rows)), rows] = np.inf
        near = np.argpartition(apart, nearest - 1, axis=1)[:, :nearest]
        both = np.stack([np.repeat(rows, near.shape[1]), near.ravel()], axis=1)
        pairs.append(np.sort(both, axis=1))
    found = np.unique(np.concatenate(pairs), axis=0)
    return found[:, 0], found[:, 1]


# --- by name ----------------------------------------------------------------------------------


def _literal(samples: FeatureSamples, temperature: float) -> PeerWeights:
    if len(samples) > MOST_DENSE:
        return near_weights(samples, temperature, debiased=False)
    return mixing_weights(distance_matrix(samples), temperature)


def _debiased(samples: FeatureSamples, temperature: float) -> PeerWeights:
    if len(samples) > MOST_DENSE:
        return near_weights(samples, temperature, debiased=True)
    return mixing_weights(debias(distance_matrix(samples), samples), temperature)


def _equal(samples: FeatureSamples, temperature: float) -> PeerWeights:
    if len(samples) > MOST_DENSE:
        return Alike(np.ones(len(samples)))
    return np.full((len(samples), len(samples)), 1 / len(samples))


SIMILARITIES: dict[str, Callable[[FeatureSamples, float], PeerWeights]] = {
    "debiased": _debiased,
    "literal": _literal,
    "none": _equal,
}
"""Ŵ from feature samples and τ, by ``personalization.similarity``. A new one is an entry here."""


def who_listens_to_whom(
    samples: FeatureSamples, similarity: str, temperature: float
) -> PeerWeights:
    """Ŵ from feature samples, by distances as they are or debiased (Eq. 19-20), or all equal.

    Raises:
        FleetError: if there is no such similarity.
    """
    return chosen(SIMILARITIES, similarity, "personalization.similarity")(samples, temperature)
