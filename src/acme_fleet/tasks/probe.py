"""A logistic regression on features: what a good encoder needs to become a classifier."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from threadpoolctl import ThreadpoolController
from torch import Tensor

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)  # C of the regression, from strong to weak
_LEAST_SCALE = 1e-4
"""Of the root mean square of all deviations: what varies less is rounding. all-MiniLM-L6-v2 has a
channel with a deviation of 2e-9 beside 0.3; scaled to 1 it got a weight of 4.6 million, and any
student's small error in it decided the answer."""

Features = Float[np.ndarray, "_ features"]
Labels = Int[np.ndarray, " _"]
Read = tuple[Features, Labels]
"""Features and labels of some samples."""


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each feature."""

    mean: Float[np.ndarray, " features"]
    deviation: Float[np.ndarray, " features"]

    @staticmethod
    def of(features: Features) -> Scaling:
        """That brings these features to mean 0 and deviation 1; one that is constant, but for
        rounding, stays."""
        deviation = features.std(axis=0, dtype=np.float64)
        least = _LEAST_SCALE * np.sqrt(np.mean(deviation**2))
        deviation[deviation <= least] = 1.0
        return Scaling(features.mean(axis=0, dtype=np.float64), deviation)


@dataclass(frozen=True)
class Probe:
    """A linear classifier on pooled features as they are.

    Attributes:
        weight: of each class on each feature; zero for classes that it never saw.
        bias: of each class.
        seen: the classes in its training data, ascending.
    """

    weight: Float[np.ndarray, "classes features"]
    bias: Float[np.ndarray, " classes"]
    seen: Int[np.ndarray, " seen"]

    def accuracy(self, features: Features, labels: Labels) -> float:
        """Share of correct answers among the classes seen."""
        scores = features @ self.weight[self.seen].T + self.bias[self.seen]
        return float((self.seen[scores.argmax(axis=1)] == labels).mean())

    def tensors(self) -> dict[str, Tensor]:
        """``weight`` and ``bias`` of a ``torch.nn.Linear``."""
        both = {"weight": self.weight, "bias": self.bias}
        return {name: torch.from_numpy(values).float() for name, values in both.items()}


def fit_probe(
    train: Read,
    validation: Read,
    classes: int,
    scaling: Scaling | None = None,
) -> Probe:
    """Fit regressions of several strengths, and keep the best on validation data.

    A device with samples of one class always answers that class.

    Args:
        train: features and labels.
        validation: the same; they choose C.
        classes: of the whole fleet.
        scaling: of the features inside the regression; that of the training data by default.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    (features, labels), (unseen, told) = train, validation
    scaling, seen = scaling or Scaling.of(features), np.unique(labels)
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    if len(seen) == 1:
        return Probe(weight, bias, seen)
    known, new = ((x - scaling.mean) / scaling.deviation for x in (features, unseen))
    # Each strength starts from the solution of the one before it.
    regression, best = LogisticRegression(max_iter=500, warm_start=True), None
    for strength in _STRENGTHS:
        regression.set_params(C=strength)
        with warnings.catch_warnings(), _one_thread():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # One sample of each class is what some devices have.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            regression.fit(known, labels)
        score = np.mean(regression.predict(new) == told)
        if best is None or score > best[0]:
            best = score, copy.deepcopy(regression)
    assert best is not None
    rows, offsets = best[1].coef_, best[1].intercept_
    if len(seen) == 2:  # one row against zero: half of it for either class is the same function
        rows, offsets = np.vstack([-rows, rows]) / 2, np.hstack([-offsets, offsets]) / 2
    weight[seen] = rows / scaling.deviation
    bias[seen] = offsets - weight[seen] @ scaling.mean
    return Probe(weight, bias, seen)


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _one_thread() -> AbstractContextManager[object]:
    """More threads are slower on small matrices, and would round sums as the machine has cores."""
    return _libraries().limit(limits=1, user_api="blas")


def average(probes: Sequence[Probe]) -> Probe:
    """Each class's row is the mean over the probes that saw the class and told it from others."""
    telling = [probe for probe in probes if len(probe.seen) > 1]
    count = np.zeros(len(probes[0].bias))
    for probe in telling:
        count[probe.seen] += 1
    share = 1 / np.maximum(count, 1)
    weight = sum((probe.weight for probe in telling), np.zeros_like(probes[0].weight))
    bias = sum((probe.bias for probe in telling), np.zeros_like(probes[0].bias))
    return Probe(weight * share[:, None], bias * share, np.flatnonzero(count))
