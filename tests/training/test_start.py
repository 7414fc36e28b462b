"""The linear start of a header: one validation sample does not decide where there are few."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acme_fleet.data.samples import Samples
from acme_fleet.models.header.module import LinearHeader
from acme_fleet.models.probe import fitted
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.tasks.probe import fit_probe
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.start import refit_if_better

CLASSES = 4
CENTRES = np.random.default_rng(0).normal(size=(CLASSES, 24))
NEAREST = {
    "weight": torch.from_numpy(CENTRES).float(),
    "bias": torch.from_numpy(-(CENTRES**2).sum(axis=1) / 2).float(),
}
"""The best classifier there can be."""


def samples(seed: int, count: int) -> Samples:
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pooled = CENTRES[labels] + 2 * draw.normal(size=(count, 24))
    nothing = torch.zeros(count, 1, 1)
    inputs = {"pooled": torch.from_numpy(pooled).float(), "last": nothing, "penultimate": nothing}
    return Samples(inputs, torch.from_numpy(labels), torch.ones(count, dtype=torch.int64))


def start(
    linear: dict[str, torch.Tensor], train: Samples, validation: Samples
) -> dict[str, torch.Tensor] | None:
    return refit_if_better(CLASSIFICATION, LinearHeader(linear), linear, train, validation)


def accuracy(linear: dict[str, torch.Tensor], test: Samples) -> float:
    return evaluate(CLASSIFICATION, LinearHeader(linear), test).score


def test_of_few_samples_those_of_training_judge_too() -> None:
    """Devices with 20 samples; by the 8 others alone many would leave the better classifier."""
    moved = NEAREST["weight"] + 0.4 * torch.randn(CLASSES, 24, generator=torch.manual_seed(0))
    sent, test = {**NEAREST, "weight": moved}, samples(0, 400)
    by_few, found = [], []
    for seed in range(1, 41):
        train, validation = samples(2 * seed, 20), samples(2 * seed + 1, 8)
        probe = fitted(fit_probe, sent, train, validation).tensors()
        wins = accuracy(probe, validation) > accuracy(sent, validation)
        by_few.append(accuracy(probe if wins else sent, test))
        found.append(accuracy(start(sent, train, validation) or sent, test))
    assert min(by_few) < accuracy(sent, test)
    assert np.mean(found) > np.mean(by_few)


@pytest.mark.parametrize("count", [8, 200])
def test_a_better_probe_replaces_what_was_sent(count: int) -> None:
    wrong = {"weight": -NEAREST["weight"], "bias": NEAREST["bias"]}
    train, validation, test = samples(1, 40), samples(2, count), samples(3, 200)
    found = start(wrong, train, validation)
    assert found is not None
    assert accuracy(found, test) > accuracy(wrong, test) + 0.3


def test_folds_tell_what_other_samples_will() -> None:
    """The few validation samples have chosen the regression, and so flatter it."""
    told, chosen, seen = [], [], []
    for seed in range(60):
        parts = (samples(3 * seed + 1, 24), samples(3 * seed + 2, 8), samples(3 * seed + 3, 400))
        train, validation, test = (
            (part.inputs["pooled"].numpy(), part.labels.numpy()) for part in parts
        )
        probe = fit_probe(train, validation, CLASSES)
        assert probe.crossed
        told.append(probe.score)
        chosen.append(probe.accuracy(*validation))
        seen.append(probe.accuracy(*test))
    assert abs(np.mean(told) - np.mean(seen)) < abs(np.mean(chosen) - np.mean(seen))


def test_many_validation_samples_judge_alone() -> None:
    train, validation = samples(1, 40), samples(2, 100)
    read = [(s.inputs["pooled"].numpy(), s.labels.numpy()) for s in (train, validation)]
    probe = fit_probe(read[0], read[1], CLASSES)
    assert not probe.crossed
    assert probe.score == probe.accuracy(*read[1])


def test_equal_answers_take_the_smaller_loss() -> None:
    """The weakest of several regressions that are all right is nearly a guess."""
    draw = np.random.default_rng(0)
    labels = np.arange(12) % 3
    features = 20 * np.eye(3, 6)[labels] + draw.normal(size=(12, 6))
    probe = fit_probe((features, labels), (features, labels), 3)
    scores = features @ probe.weight.T + probe.bias
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert (odds[np.arange(12), labels] / odds.sum(axis=1)).min() > 0.8


def test_a_task_without_a_probe_keeps_what_was_sent() -> None:
    train = samples(1, 8)
    assert refit_if_better(GENERATION, LinearHeader(NEAREST), NEAREST, train, train) is None
