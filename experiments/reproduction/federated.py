"""FedAvg and FedPer over a cluster's devices, with as many passes over private data as ACME takes.

The devices train the whole model: the cluster's backbone with a linear classifier, as small as
what ACME ships. FedPer (Arivazhagan et al. 2019) shares the backbone and leaves every device its
own classifier.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from acme_fleet.baselines.aggregation import federated_average
from acme_fleet.cloud.reference import augmentation
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.hardware import Cluster
from acme_fleet.models.features import Classifier
from acme_fleet.models.training import evaluate, fit
from acme_fleet.report.summary import ClusterSummary

from .bench import Bench
from .rivals import Plain, personal_accuracies

State = Mapping[str, Tensor]
_OWN = "head."  # what FedPer leaves on the device


def averaged(states: Sequence[State], samples: Sequence[int]) -> dict[str, Tensor]:
    """The mean of models, each counted by its number of samples."""
    shares = federated_average(list(samples))[0]
    return {
        name: torch.stack([s * state[name] for s, state in zip(shares, states, strict=True)]).sum(0)
        for name in states[0]
    }


def federated(cluster: Cluster, summary: ClusterSummary, bench: Bench) -> dict[str, Any]:
    """Test accuracies by device of FedAvg, plain and with adapted classifiers, and of FedPer."""
    backbone = bench.elastic.extract(bench.elastic.shape(summary.width, summary.depth))
    start = Classifier(backbone, copy.deepcopy(bench.elastic.classifier.head)).requires_grad_(True)
    with bench.accelerated(start):
        (everyone, *_) = _rounds(start, cluster, bench, personal=False)
        customised = _rounds(start, cluster, bench, personal=True)
    model = copy.deepcopy(start)
    model.load_state_dict(everyone)
    model.requires_grad_(False).eval()
    tests = [bench.world.private[device.name].test for device in cluster.devices]
    personal = []
    for state, test in zip(customised, tests, strict=True):
        start.load_state_dict(state)
        personal.append(evaluate(start.eval(), test).accuracy)
    return {
        "FedAvg": [evaluate(model, test).accuracy for test in tests],
        "FedAvg, then adapted": personal_accuracies(Plain(model), cluster, bench, "FedAvg"),
        "FedPer": personal,
        "size_bytes": file_size(shapes_of(model)),
    }


def _rounds(
    start: Classifier, cluster: Cluster, bench: Bench, *, personal: bool
) -> list[dict[str, Tensor]]:
    """Each device's model after the best round by the devices' validation data.

    A round is one epoch on every device, from what all have in common.
    """
    settings, reference = bench.fleet.personalization, bench.fleet.reference
    training = reference.training.model_copy(update={"epochs": 1})
    own = [bench.world.private[device.name] for device in cluster.devices]
    augment = augmentation(reference.crop_padding, flip=reference.flip)
    first = {name: value.clone() for name, value in start.state_dict().items()}
    states = [dict(first) for _ in own]
    best, best_accuracy = states, -1.0
    model = copy.deepcopy(start)
    for number in range(settings.training_in_all.epochs):
        trained = []
        for i, (state, data) in enumerate(zip(states, own, strict=True)):
            model.load_state_dict(state)
            draw = bench.draw("FedPer" if personal else "FedAvg", cluster.name, number, i)
            fit(model, data.train, training, draw, augment=augment)
            trained.append({name: value.clone() for name, value in model.state_dict().items()})
        common = averaged(trained, [len(data.train) for data in own])
        states = [
            {name: of[name] if personal and name.startswith(_OWN) else common[name] for name in of}
            for of in trained
        ]
        accuracies = []
        for state, data in zip(states, own, strict=True):
            model.load_state_dict(state)
            accuracies.append(evaluate(model.eval(), data.validation).accuracy)
        if statistics.fmean(accuracies) > best_accuracy:
            best, best_accuracy = states, statistics.fmean(accuracies)
    return best
