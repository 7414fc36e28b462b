"""Local training as the product has it, and two variants that ``personalisation.py`` compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acme_fleet.config.training import Training
from acme_fleet.device.refinement import LocalTraining, Trained
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.header.unpruned import unpruned
from acme_fleet.simulation.batched import _Batch, train_headers
from acme_fleet.tasks.classification import CLASSIFICATION


@dataclass(frozen=True)
class Local:
    """Training on devices.

    Attributes:
        training: epochs, rate and the rest.
        last: the last epoch is kept, and not the best by validation.
        pull: µ of (µ/2)·|w - received|² beside the loss (FedProx, Ditto).
        own_classes: the softmax runs over the classes that a device trains on (FedRS).
    """

    training: Training
    last: bool = False
    pull: float = 0.0
    own_classes: bool = False


def train_all(devices: Sequence[LocalTraining], local: Local) -> list[Trained]:
    """All devices' trained headers and importance sets."""
    if not local.pull and not local.own_classes:
        return list(train_headers(CLASSIFICATION, devices, local.training, to_mix=local.last))
    order = sorted(range(len(devices)), key=lambda i: -len(devices[i].features.train))
    plan = unpruned(devices[0].header.plan)
    trained = _Variant(plan, [devices[i] for i in order], local).run(local.last)
    results = dict(zip(order, trained, strict=True))
    return [results[i] for i in range(len(devices))]


class _Variant(_Batch):
    """The product's batch with other logits and another gradient."""

    def __init__(self, plan: HeaderPlan, devices: Sequence[LocalTraining], local: Local) -> None:
        super().__init__(CLASSIFICATION, plan, devices, local.training)
        self.local, self.received = local, self.values.clone()
        self.absent = torch.ones(len(devices), plan.classes, dtype=torch.bool)
        for row, device in zip(self.absent, devices, strict=True):
            row[device.features.train.labels] = False

    def _logits(self, values: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        logits = super()._logits(values, inputs)
        if self.local.own_classes:
            logits = logits.masked_fill(self.absent[: len(values), :, None], -1e4)
        return logits

    def _update(self, gradients: Tensor, epoch: int, step: int) -> None:
        active = len(gradients)
        away = self.values[:active] - self.received[:active]
        super()._update(gradients.add_(away, alpha=self.local.pull), epoch, step)
