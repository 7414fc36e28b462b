"""Probabilities that a difference between two samples is chance alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, fisher_exact

from acme_fleet.edge.similarity import transport_distance

_TRIES = 199  # of a permutation test: the smallest probability is 1/200


def classes_chance(
    old: Int[np.ndarray, " classes"], new: Int[np.ndarray, " classes"], draw: np.random.Generator
) -> float:
    """Permutation test of χ² between the counts of classes in two samples."""
    pooled = old + new
    seen = pooled > 0
    dealt = draw.multivariate_hypergeometric(pooled[seen], int(old.sum()), size=_TRIES)
    return _share(_spread(old[seen], pooled[seen]), _spread(dealt, pooled[seen]))


def _spread(part: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """χ² of one part's counts against the pooled ones, up to a factor."""
    expected = pooled * part.sum(axis=-1, keepdims=True) / pooled.sum()
    return ((part - expected) ** 2 / pooled).sum(axis=-1)


def features_chance(
    old: Float[np.ndarray, "rows features"],
    new: Float[np.ndarray, "rows features"],
    draw: np.random.Generator,
) -> float:
    """Permutation test of the Wasserstein distance (Eq. 19) between two samples."""
    pooled = np.concatenate([old, new])

    def dealt() -> float:
        rows = draw.permutation(len(pooled))
        return transport_distance(pooled[rows[: len(old)]], pooled[rows[len(old) :]])

    others = np.array([dealt() for _ in range(_TRIES)])
    return _share(np.array(transport_distance(old, new)), others)


def hits_chance(old: tuple[int, int], new: tuple[int, int]) -> float:
    """Fisher's exact test of two shares, each as the right ones and all."""
    table = [[right, count - right] for right, count in (old, new)]
    return float(fisher_exact(table).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def gain_chance(before: Bool[np.ndarray, " samples"], after: Bool[np.ndarray, " samples"]) -> float:
    """Sign test that a second model is right more often than a first on the same samples."""
    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    if not better + worse:
        return 1.0
    return float(binomtest(better, better + worse, alternative="greater").pvalue)


def _share(seen: np.ndarray, others: np.ndarray) -> float:
    """Share of values as large as the one that was seen, itself included."""
    return float((1 + (others >= seen * (1 - 1e-9)).sum()) / (1 + len(others)))
