"""Rivals of the mixing weights Ŵ (Eq. 19-20, Fig. 11).

Each gives a matrix whose row n holds the weights of n's peers, itself included. The identity
mixes nothing; Alone and Avg differ from ACME in nothing else. FedAvg applies its rows to the
header's weights (:func:`acme_fleet.personalization.weights.mix_headers`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import rel_entr
from sklearn.decomposition import PCA

Square = Float[np.ndarray, "devices devices"]


def alone(devices: int) -> Square:
    """Alone: everybody uses its own set."""
    return np.eye(devices)


def average(devices: int) -> Square:
    """Avg: everybody uses the mean of all sets."""
    return np.full((devices, devices), 1.0 / devices)


def federated_average(sample_counts: Sequence[int]) -> Square:
    """FedAvg: everybody's weight is its share of all training samples."""
    counts = np.asarray(sample_counts, dtype=np.float64)
    return np.tile(counts / counts.sum(), (len(counts), 1))


def jensen_shannon_distances(
    samples: Sequence[Float[np.ndarray, "_ features"]], components: int = 8, bins: int = 8
) -> Square:
    """JS: mean Jensen-Shannon divergence over principal components, in bits, 0 to 1.

    The components (fewer if there are fewer samples or features) and the bins are those of all
    samples together: histograms over different bins cannot be compared. Bins hold equally many of
    all samples.
    """
    joined = np.concatenate(list(samples))
    pca = PCA(n_components=min(components, *joined.shape), svd_solver="full").fit(joined)
    projected = [pca.transform(sample) for sample in samples]
    inner = np.quantile(np.concatenate(projected), np.linspace(0, 1, bins + 1)[1:-1], axis=0)
    # (devices, components, bins)
    counts = np.array(
        [
            [
                np.bincount(np.searchsorted(edges, column, side="right"), minlength=bins)
                for edges, column in zip(inner.T, sample.T, strict=True)
            ]
            for sample in projected
        ],
        dtype=np.float64,
    )
    shares = counts / counts.sum(axis=-1, keepdims=True)
    ours, theirs = shares[:, None], shares[None, :]
    middle = (ours + theirs) / 2
    entropies = rel_entr(ours, middle) + rel_entr(theirs, middle)
    return np.asarray(entropies.sum(axis=-1).mean(axis=-1)) / (2 * np.log(2))
