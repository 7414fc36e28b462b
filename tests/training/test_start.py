"""The linear start of a header: what was sent, changed as far as a device's samples say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.models.header.module import LinearHeader
from acme_fleet.models.probe import refit
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.tasks.probe import fit_changes, fit_probe
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.start import changed

CLASSES = 4
CENTRES = np.random.default_rng(0).normal(size=(CLASSES, 24))
NEAREST = {
    "weight": torch.from_numpy(CENTRES).float() / 4,
    "bias": torch.from_numpy(-(CENTRES**2).sum(axis=1) / 8).float(),
}
"""The best classifier there can be."""


def samples(seed: int, count: int, classes: int = CLASSES) -> Samples:
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pooled = torch.from_numpy(CENTRES[labels] + 2 * draw.normal(size=(count, 24))).float()
    nothing = torch.zeros(count, 1, 1)
    inputs = {"pooled": pooled, "last": nothing, "penultimate": nothing}
    return Samples(inputs, torch.from_numpy(labels), torch.ones(count, dtype=torch.int64))


def starts(linear: dict[str, Tensor], train: Samples) -> list[dict[str, Tensor]]:
    return list(changed(CLASSIFICATION, LinearHeader(linear), linear, train))


def accuracy(linear: dict[str, Tensor], test: Samples) -> float:
    return evaluate(CLASSIFICATION, LinearHeader(linear), test).score


def test_few_samples_change_a_good_classifier_less_than_they_can_teach() -> None:
    """Twenty devices with 20 samples: regressions from nothing lose what was sent."""
    sent = {
        **NEAREST,
        "weight": NEAREST["weight"]
        + 0.1 * torch.randn(CLASSES, 24, generator=torch.manual_seed(0)),
    }
    test, kept, anew = samples(0, 400), [], []
    for seed in range(1, 21):
        train, validation = samples(2 * seed, 20), samples(2 * seed + 1, 8)
        kept.append([accuracy(linear, test) for linear in starts(sent, train)])
        anew.append(accuracy(refit(fit_probe, sent, train, validation), test))
    lost = accuracy(sent, test) - np.mean(kept, axis=0)
    assert (lost < accuracy(sent, test) - np.mean(anew)).all()
    assert lost[0] < (accuracy(sent, test) - np.mean(anew)) / 3


def test_what_a_device_knows_better_changes_the_answers() -> None:
    """It has two of four classes: a little change is enough to leave the others out."""
    train, test = samples(1, 30, classes=2), samples(2, 200, classes=2)
    before, after = accuracy(NEAREST, test), [accuracy(own, test) for own in starts(NEAREST, train)]
    assert min(after) > before + 0.05


def test_a_strong_change_of_no_answers_is_a_regression() -> None:
    read = (samples(1, 60).inputs["pooled"].double().numpy(), samples(1, 60).labels.numpy())
    *_, strong = fit_changes(read, np.zeros((60, CLASSES)))
    mean, deviation = read[0].mean(axis=0), read[0].std(axis=0)
    rival = LogisticRegression(C=0.3, max_iter=2000, tol=1e-8).fit(
        (read[0] - mean) / deviation, read[1]
    )
    assert strong.weight * deviation == pytest.approx(rival.coef_, abs=2e-3)


def test_changes_grow_with_their_strength_and_fit_the_samples_better() -> None:
    train = samples(1, 40)
    losses = [
        evaluate(CLASSIFICATION, LinearHeader(linear), train).loss
        for linear in [NEAREST, *starts(NEAREST, train)]
    ]
    assert losses == sorted(losses, reverse=True)
    moved = [float((own["weight"] - NEAREST["weight"]).norm()) for own in starts(NEAREST, train)]
    assert moved == sorted(moved)


def test_a_channel_that_hardly_varies_makes_no_start_long() -> None:
    """Scaled to 1 it would get more weight than all others, and the header look like a liar's."""
    sent = {**NEAREST, "weight": torch.cat([NEAREST["weight"], torch.zeros(CLASSES, 1)], dim=1)}

    def with_channel(seed: int) -> Samples:
        own = samples(seed, 40)
        nearly = 1e-3 * torch.randn(40, 1, generator=torch.manual_seed(seed))
        pooled = torch.cat([own.inputs["pooled"], nearly], dim=1)
        return Samples({**own.inputs, "pooled": pooled}, own.labels, own.stored_bytes)

    train, validation = with_channel(1), with_channel(2)
    for own in [*starts(sent, train), refit(fit_probe, sent, train, validation)]:
        moved = own["weight"] - sent["weight"]
        assert moved[:, -1].norm() < 0.1 * moved[:, :-1].norm()


def test_a_task_without_changes_keeps_what_was_sent() -> None:
    header = LinearHeader(NEAREST)
    assert not list(changed(GENERATION, header, NEAREST, samples(1, 8)))


def test_equal_answers_take_the_smaller_loss() -> None:
    """The weakest of several regressions that are all right is nearly a guess."""
    draw = np.random.default_rng(0)
    labels = np.arange(12) % 3
    features = 20 * np.eye(3, 6)[labels] + draw.normal(size=(12, 6))
    probe = fit_probe((features, labels), (features, labels), 3)
    scores = features @ probe.weight.T + probe.bias
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert (odds[np.arange(12), labels] / odds.sum(axis=1)).min() > 0.8
