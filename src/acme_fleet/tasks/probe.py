"""A logistic regression on features: what a good encoder needs to become a classifier."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import ThreadpoolController
from torch import Tensor

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)  # C of the regression, from strong to weak
_LEAST_SCALE = 1e-4
"""Of the root mean square of all deviations: what varies less is rounding. all-MiniLM-L6-v2 has a
channel with a deviation of 2e-9 beside 0.3; scaled to 1 it got a weight of 4.6 million, and any
student's small error in it decided the answer."""
_LEAST_IN_MODELS = 1e-2
"""The same for a classifier that becomes part of a model. In a student of that encoder three
channels vary by 3e-4 to 2e-3; a device's regression gave them 160 times the weight of all others
together, and the edge server shortened this update to 1.5 %, as if a liar had sent it."""
_SOLVER = {"maxiter": 200}
_CHANGES = (0.003, 0.03, 0.3)  # C of a change to a given classifier

Features = Float[np.ndarray, "_ features"]
Labels = Int[np.ndarray, " _"]
Flat = Float[np.ndarray, " numbers"]
Read = tuple[Features, Labels]
"""Features and labels of some samples."""


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each feature."""

    mean: Float[np.ndarray, " features"]
    deviation: Float[np.ndarray, " features"]

    @staticmethod
    def of(features: Features, least: float = _LEAST_SCALE) -> Scaling:
        """That brings these features to mean 0 and deviation 1; one that is constant, but for
        ``least`` of the root mean square of all deviations, stays."""
        deviation = features.std(axis=0, dtype=np.float64)
        deviation[deviation <= least * np.sqrt(np.mean(deviation**2))] = 1.0
        return Scaling(features.mean(axis=0, dtype=np.float64), deviation)


class Linear(NamedTuple):
    """A linear classifier's numbers."""

    weight: Float[np.ndarray, "classes features"]
    bias: Float[np.ndarray, " classes"]


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

    Of those with as many right answers the one of the smallest loss is kept. A device with samples
    of one class always answers that class.

    Args:
        train: features and labels.
        validation: the same; they choose C.
        classes: of the whole fleet.
        scaling: of the features inside the regression; by default that of the training data, for
            a classifier that becomes part of a model.
    """
    (features, labels), (unseen, told) = train, validation
    scaling, seen = scaling or Scaling.of(features, _LEAST_IN_MODELS), np.unique(labels)
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    if len(seen) == 1:
        return Probe(weight, bias, seen)
    known, new = ((x - scaling.mean) / scaling.deviation for x in (features, unseen))
    best = max(_regressions((known, labels)), key=lambda tried: _judged(tried, (new, told)))
    rows, offsets = best.coef_, best.intercept_
    if len(seen) == 2:  # one row against zero: half of it for either class is the same function
        rows, offsets = np.vstack([-rows, rows]) / 2, np.hstack([-offsets, offsets]) / 2
    weight[seen] = rows / scaling.deviation
    bias[seen] = offsets - weight[seen] @ scaling.mean
    return Probe(weight, bias, seen)


def _regressions(known: Read) -> list[LogisticRegression]:
    """One of each strength; each starts from the solution of the one before it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    regression, fitted = LogisticRegression(max_iter=500, warm_start=True), []
    with warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One sample of each class is what some devices have.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        for strength in _STRENGTHS:
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


def fit_changes(train: Read, given: Float[np.ndarray, "_ classes"]) -> list[Linear]:
    """Changes of given answers by a linear classifier, of several strengths from weak to strong.

    min_Δ C·Σ cross-entropy(given + Δ·x) + ½‖Δ‖², on features of mean 0 and deviation 1; the bias is
    free. A device with few samples so keeps what it has received where they say nothing else, as
    they do not in a regression from nothing.

    Args:
        train: features and labels.
        given: the logits of these samples, without the change.

    Returns:
        ``weight`` of (classes, features) and ``bias`` for each, for features as they are.
    """
    features, labels = train
    scaling, told = Scaling.of(features, _LEAST_IN_MODELS), np.eye(given.shape[1])[labels]
    scaled = (features - scaling.mean) / scaling.deviation
    rows = np.hstack([scaled, np.ones((len(scaled), 1))])
    change, found = np.zeros((given.shape[1], rows.shape[1])), []

    def objective(flat: Flat, strength: float) -> tuple[float, Flat]:
        delta = flat.reshape(change.shape)
        logs = log_softmax(given + rows @ delta.T, axis=1)
        slope = strength * (np.exp(logs) - told).T @ rows
        slope[:, :-1] += delta[:, :-1]
        return float((delta[:, :-1] ** 2).sum() / 2 - strength * (told * logs).sum()), slope.ravel()

    for strength in _CHANGES:
        with _one_thread():
            solved = minimize(
                objective, change.ravel(), (strength,), "L-BFGS-B", jac=True, options=_SOLVER
            )
        change = solved.x.reshape(change.shape)
        weight = change[:, :-1] / scaling.deviation
        found.append(Linear(weight, change[:, -1] - weight @ scaling.mean))
    return found


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
