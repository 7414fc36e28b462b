"""The rival of every run: a logistic regression on the pooled features of the whole reference."""

from __future__ import annotations

import copy

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.refinement import HeaderState
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.header.module import Header, answering_as, build_header, initial_tensors
from acme_fleet.models.probe import refit
from acme_fleet.simulation.probe_rival import measure_probe, round_to_int8
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import average, fit_probe
from tiny_fleet import tiny


def _blobs(seed: int, classes: list[int], samples: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, samples)
    return draw.normal(size=(samples, 4)) + 3 * np.eye(6, 4)[labels], labels


def test_a_probe_answers_as_scikit_learn_does():
    train, validation, test = (_blobs(seed, [0, 2, 3]) for seed in range(3))
    probe = fit_probe(train, validation, 6)
    assert probe.seen.tolist() == [0, 2, 3]
    assert not probe.weight[[1, 4, 5]].any()
    best = max(
        LogisticRegression(C=c, max_iter=2000).fit(*train).score(*validation)
        for c in (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)
    )
    assert probe.accuracy(*validation) == best
    assert probe.accuracy(*test) > 0.8


def test_two_classes_and_one():
    train, validation = _blobs(0, [1, 2]), _blobs(1, [1, 2])
    probe = fit_probe(train, validation, 6)
    assert probe.accuracy(*validation) > 0.9
    only = fit_probe(_blobs(2, [4]), _blobs(3, [4]), 6)
    assert only.seen.tolist() == [4]
    assert only.accuracy(*_blobs(4, [4])) == 1.0


def test_rounding_in_a_constant_feature_is_not_learned():
    """Scaled to a deviation of 1 it would be the largest number of another model's features."""
    noise = np.random.default_rng(5)

    def with_noise(seed: int, size: float = 2e-9) -> tuple[np.ndarray, np.ndarray]:
        features, labels = _blobs(seed, [0, 2, 3])
        rounding = 3 + size * noise.normal(size=(len(features), 1))
        return np.hstack([features, rounding]), labels

    probe = fit_probe(with_noise(0), with_noise(1), 6)
    plain = fit_probe(_blobs(0, [0, 2, 3]), _blobs(1, [0, 2, 3]), 6)
    assert np.abs(probe.weight).max() < 2 * np.abs(plain.weight).max()
    students = with_noise(2, 0.01)  # which does not repeat the reference's rounding
    assert probe.accuracy(*students) == plain.accuracy(*_blobs(2, [0, 2, 3]))


HEADER = HeaderPlan(
    genotype=Genotype(
        blocks=(Block(inputs=(0, 1), operations=("conv3", "conv1")),), cells=1, channels=3
    ),
    hidden=5,
    classes=6,
    axes=1,
    pooled=4,
)


def _features(seed: int, classes: list[int]) -> Samples:
    """A header's inputs on a device; only the pooled vector tells the class."""
    pooled, labels = _blobs(seed, classes)
    draw = torch.Generator().manual_seed(seed)
    maps = {name: torch.randn(60, 5, 7, generator=draw) for name in ("last", "penultimate")}
    inputs = {**maps, "pooled": torch.from_numpy(pooled).float()}
    return Samples(inputs, torch.from_numpy(labels), torch.ones(60, dtype=torch.int64))


def _some_header() -> Header:
    draw = torch.Generator().manual_seed(0)
    return build_header(HEADER, initial_tensors(HEADER.shapes(), draw))


def test_an_untrained_header_answers_as_the_probe():
    train, validation, test = (_features(seed, [0, 1, 2, 3, 4, 5]) for seed in range(3))
    coarse = _some_header()
    linear = {part: coarse.state_dict()[f"classifier.pooled.{part}"] for part in ("weight", "bias")}
    fitted = refit(fit_probe, linear, train, validation)
    header = build_header(HEADER, answering_as(coarse.state_dict(), fitted))
    expected = test.inputs["pooled"] @ fitted["weight"].T + fitted["bias"]
    torch.testing.assert_close(header(**test.inputs), expected)
    known, unseen = ((s.inputs["pooled"].numpy(), s.labels.numpy()) for s in (train, validation))
    probe = fit_probe(known, unseen, 6)
    torch.testing.assert_close(fitted["weight"], torch.from_numpy(probe.weight).float())


def test_a_header_is_never_below_the_probe_on_validation_data():
    for own in ([0, 1, 2, 3], [2, 5], [4]):
        train, validation = _features(3, own), _features(4, own)
        state = HeaderState.start(
            CLASSIFICATION, _some_header(), Splits(train, validation, validation)
        )
        known, unseen = (
            (s.inputs["pooled"].numpy(), s.labels.numpy()) for s in (train, validation)
        )
        probe = fit_probe(known, unseen, 6)
        assert state.best_evaluation.score >= probe.accuracy(*unseen)


def test_classes_without_a_sample_stay_behind_and_keep_their_rows():
    train, validation = _features(5, [1]), _features(6, [1])
    linear = {"weight": torch.randn(6, 4), "bias": torch.full((6,), 50.0)}
    fitted = refit(fit_probe, linear, train, validation)
    logits = train.inputs["pooled"] @ fitted["weight"].T + fitted["bias"]
    assert (logits.argmax(dim=1) == 1).all()
    others = [0, 2, 3, 4, 5]
    assert torch.equal(fitted["weight"][others], linear["weight"][others])


def test_the_average_takes_each_class_from_those_who_saw_it():
    one, two = (
        fit_probe(_blobs(i, own), _blobs(9, own), 6) for i, own in enumerate([[0, 1, 2], [2, 3]])
    )
    mean = average([one, two, fit_probe(_blobs(3, [5]), _blobs(4, [5]), 6)])
    assert mean.seen.tolist() == [0, 1, 2, 3]
    assert np.allclose(mean.weight[0], one.weight[0])
    assert np.allclose(mean.weight[2], (one.weight[2] + two.weight[2]) / 2)
    assert np.allclose(mean.bias[3], two.bias[3])


def test_every_device_of_a_fleet_is_measured_on_its_pixels():
    world = load_world(tiny())
    told: list[tuple[int, int]] = []
    result = measure_probe(None, None, world, lambda *done: told.append(done))
    assert result.alone.keys() == result.averaged.keys() == world.private.keys()
    assert np.mean(list(result.alone.values())) > 0.8
    assert result.size_bytes == 4 * 65 * 5
    assert told[-1] == (4, 4)


def test_int8_keeps_255_levels_a_row():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 3))
    before = copy.deepcopy(model)
    round_to_int8(model)
    for name, weight in model.named_parameters():
        was = before.get_parameter(name)
        if weight.ndim == 1:
            assert torch.equal(weight, was)
            continue
        scale = was.abs().amax(dim=1, keepdim=True) / 127
        assert (weight / scale).round().sub(weight / scale).abs().max() < 1e-3
        assert ((weight - was).abs() <= scale / 2 + 1e-6).all()
