"""FedAvg and FedPer over a cluster's devices, with as many passes over private data as ACME takes.

The devices train the whole model: the cluster's backbone with a linear classifier, as small as
what ACME ships. FedPer (Arivazhagan et al. 2019) shares the backbone and leaves every device its
own classifier.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
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
OWN = "head."  # what FedPer leaves on the device


def averaged(states: Sequence[State], samples: Sequence[int]) -> dict[str, Tensor]:
    """The mean of models, each counted by its number of samples."""
    shares = federated_average(list(samples))[0]
    return {
        name: torch.stack([s * state[name] for s, state in zip(shares, states, strict=True)]).sum(0)
        for name in states[0]
    }


class Clients:
    """A cluster's devices, each of which trains the whole model on its private data."""

    def __init__(self, start: Classifier, cluster: Cluster, bench: Bench, purpose: str) -> None:
        reference = bench.fleet.reference
        self._private = [bench.world.private[device.name] for device in cluster.devices]
        self._training = reference.training.model_copy(update={"epochs": 1})
        self._augment = augmentation(reference.crop_padding, flip=reference.flip)
        self._draw = lambda *occasion: bench.draw(purpose, cluster.name, *occasion)
        self._model = copy.deepcopy(start)

    @property
    def samples(self) -> list[int]:
        """What each of them trains on."""
        return [len(own.train) for own in self._private]

    def trained(self, number: int, client: int, state: State) -> dict[str, Tensor]:
        """A client's model after one epoch of round ``number`` that begins with ``state``."""
        self._model.load_state_dict(state)
        fit(
            self._model,
            self._private[client].train,
            self._training,
            self._draw(number, client),
            augment=self._augment,
        )
        return _copy(self._model)

    def accuracy(self, states: Sequence[State]) -> float:
        """Mean over clients, each with a model of its own on its validation data."""
        accuracies = []
        for state, own in zip(states, self._private, strict=True):
            self._model.load_state_dict(state)
            accuracies.append(evaluate(self._model.eval(), own.validation).accuracy)
        return statistics.fmean(accuracies)


def rounds(clients: Clients, start: State, *, personal: bool) -> Iterator[list[State]]:
    """Each client's model after each round; with ``personal`` it keeps its own classifier."""
    states = [start for _ in clients.samples]
    for number in itertools.count():
        trained = [clients.trained(number, i, state) for i, state in enumerate(states)]
        common = averaged(trained, clients.samples)
        states = [
            {name: of[name] if personal and name.startswith(OWN) else common[name] for name in of}
            for of in trained
        ]
        yield states


def federated(cluster: Cluster, summary: ClusterSummary, bench: Bench) -> dict[str, Any]:
    """Test accuracies by device of FedAvg, plain and with adapted classifiers, and of FedPer."""
    start = bench.recovered(summary.width, summary.depth).requires_grad_(True)
    (everyone, *_) = _best(start, cluster, bench, "FedAvg")
    model = copy.deepcopy(start)
    model.load_state_dict(everyone)
    model.requires_grad_(False).eval()
    tests = [bench.world.private[device.name].test for device in cluster.devices]
    personal = []
    for state, test in zip(_best(start, cluster, bench, "FedPer"), tests, strict=True):
        model.load_state_dict(state)
        personal.append(evaluate(model, test).accuracy)
    model.load_state_dict(everyone)
    return {
        "FedAvg": [evaluate(model, test).accuracy for test in tests],
        "FedAvg, then adapted": personal_accuracies(Plain(model), cluster, bench, "FedAvg"),
        "FedPer": personal,
        "size_bytes": file_size(shapes_of(model)),
    }


def _best(start: Classifier, cluster: Cluster, bench: Bench, way: str) -> list[State]:
    """Each device's model after the best round by the devices' validation data.

    A round is one epoch on every device, from what all have in common.
    """
    with bench.accelerated(start):
        clients, first = Clients(start, cluster, bench, way), _copy(start)
        outcomes = itertools.islice(
            rounds(clients, first, personal=way == "FedPer"),
            bench.fleet.personalization.training_in_all.epochs,
        )
        return max(outcomes, key=clients.accuracy)


def _copy(model: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
