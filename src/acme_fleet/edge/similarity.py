"""Who has data like whose: Wasserstein distances between feature samples (Eq. 19-20)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import ot
from jaxtyping import Float
from scipy.spatial.distance import cdist


def transport_distance(
    x: Float[np.ndarray, "n features"], y: Float[np.ndarray, "m features"]
) -> float:
    """Exact 1-Wasserstein distance under the L1 ground cost between two samples (Eq. 19)."""
    cost = cdist(x, y, metric="cityblock")
    return float(np.asarray(ot.emd2([], [], cost)))


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
    """Remove what is only sampling noise, and the scale (a named deviation, METHOD 8).

    Between small samples in many dimensions most of the distance is noise: two samples of one
    distribution are far apart too. The mean distance between the halves of either sample is
    taken off, negative results are zero, and the median of the positive rest becomes 1.
    """
    own = np.array([transport_distance(s[::2], s[1::2]) if len(s) > 1 else 0.0 for s in samples])
    rest = np.maximum(distances - (own[:, None] + own[None, :]) / 2, 0.0)
    np.fill_diagonal(rest, 0.0)
    positive = rest[rest > 0]
    return rest / np.median(positive) if positive.size else rest


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


def who_listens_to_whom(
    samples: Sequence[Float[np.ndarray, "_ features"]],
    similarity: Literal["debiased", "literal", "none"],
    temperature: float,
) -> Float[np.ndarray, "devices devices"]:
    """Ŵ from feature samples, by distances as they are or debiased (Eq. 19-20), or all equal."""
    if similarity == "none":
        return np.full((len(samples), len(samples)), 1 / len(samples))
    distances = distance_matrix(samples)
    if similarity == "debiased":
        distances = debias(distances, samples)
    return mixing_weights(distances, temperature)
