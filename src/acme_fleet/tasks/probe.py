"""A logistic regression on features: what a good encoder needs to become a classifier."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from threadpoolctl import ThreadpoolController
from torch import Tensor

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)  # C of the regression, from strong to weak
_LEAST_SCALE = 1e-4
"""Of the root mean square of all deviations: what varies less is rounding. all-MiniLM-L6-v2 has a
channel with a deviation of 2e-9 beside 0.3; scaled to 1 it got a weight of 4.6 million, and any
student's small error in it decided the answer."""
_FEW = 100  # validation samples: of fewer, one decides too much
_FOLDS = 5

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
        score: the share of right answers to samples that were not fitted to: the validation data
            or, where these are few, all samples in five folds.
        crossed: true if it is of folds.
    """

    weight: Float[np.ndarray, "classes features"]
    bias: Float[np.ndarray, " classes"]
    seen: Int[np.ndarray, " seen"]
    score: float = float("nan")
    crossed: bool = False

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

    Of those with as many right answers the one of the smallest loss is kept. A device with samples
    of one class always answers that class.

    Args:
        train: features and labels.
        validation: the same; they choose C.
        classes: of the whole fleet.
        scaling: of the features inside the regression; that of the training data by default.
    """
    (features, labels), (unseen, told) = train, validation
    scaling, seen = scaling or Scaling.of(features), np.unique(labels)
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    few = len(told) < _FEW
    every = np.concatenate([labels, told]) if few else told
    if len(seen) == 1:
        return Probe(weight, bias, seen, float(np.mean(every == seen[0])), few)
    known, new = ((x - scaling.mean) / scaling.deviation for x in (features, unseen))
    tried = _regressions((known, labels), _STRENGTHS)
    judged = [_judged(regression, (new, told)) for regression in tried]
    best = max(range(len(tried)), key=judged.__getitem__)
    rows, offsets = tried[best].coef_, tried[best].intercept_
    if len(seen) == 2:  # one row against zero: half of it for either class is the same function
        rows, offsets = np.vstack([-rows, rows]) / 2, np.hstack([-offsets, offsets]) / 2
    weight[seen] = rows / scaling.deviation
    bias[seen] = offsets - weight[seen] @ scaling.mean
    right = judged[best][0]
    if few:
        right = _crossed((np.concatenate([known, new]), every), _STRENGTHS[best])
    return Probe(weight, bias, seen, right / len(every), few)


def _regressions(known: Read, strengths: Sequence[float]) -> list[LogisticRegression]:
    """One of each strength; each starts from the solution of the one before it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    regression, fitted = LogisticRegression(max_iter=500, warm_start=True), []
    with warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One sample of each class is what some devices have.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        for strength in strengths:
            regression.set_params(C=strength).fit(*known)
            fitted.append(copy.deepcopy(regression))
    return fitted


def _judged(regression: LogisticRegression, unseen: Read) -> tuple[int, float]:
    """Right answers, and the log-likelihood of the samples whose class it knows."""
    features, labels = unseen
    known = np.isin(labels, regression.classes_)
    columns = np.searchsorted(regression.classes_, labels[known])
    logs = regression.predict_log_proba(features)
    right = np.sum(regression.classes_[logs.argmax(axis=1)] == labels)
    return int(right), float(logs[known][np.arange(len(columns)), columns].sum())


def _crossed(samples: Read, strength: float) -> int:
    """Right answers on all samples, each by a regression on the other folds.

    Folds have equal shares of each class, as far as its samples go.
    """
    features, labels = samples
    fold, right = np.empty(len(labels), dtype=int), 0
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % _FOLDS
    for number in range(_FOLDS):
        others, own = fold != number, fold == number
        seen = np.unique(labels[others])
        if len(seen) == 1:
            right += int(np.sum(labels[own] == seen[0]))
        elif own.any():
            (fitted,) = _regressions((features[others], labels[others]), [strength])
            right += _judged(fitted, (features[own], labels[own]))[0]
    return right


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
