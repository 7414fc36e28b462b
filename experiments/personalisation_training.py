"""Local training as the product has it, and two variants that ``personalisation.py`` compares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.device.batched import _ABSENT, LocalTraining, Trained, _Batch, train_headers
from acme_fleet.fleet import Training
from acme_fleet.models.header_plan import HeaderPlan
from acme_fleet.models.stacked import split_vectors, stacked_logits
from acme_fleet.models.unpruned import unpruned


@dataclass(frozen=True)
class Local:
    """How devices train.

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
        return list(train_headers(devices, local.training, to_mix=local.last))
    order = sorted(range(len(devices)), key=lambda i: -len(devices[i].features.train))
    plan = unpruned(devices[0].header.plan)
    trained = _Variant(plan, [devices[i] for i in order], local).run(local.last)
    results = dict(zip(order, trained, strict=True))
    return [results[i] for i in range(len(devices))]


class _Variant(_Batch):
    """The product's batch with another step."""

    def __init__(self, plan: HeaderPlan, devices: Sequence[LocalTraining], local: Local) -> None:
        super().__init__(plan, devices, local.training)
        self.local, self.received = local, self.values.clone()
        self.absent = torch.ones(len(devices), plan.classes, dtype=torch.bool)
        for row, device in zip(self.absent, devices, strict=True):
            row[device.features.train.labels] = False

    def _step(self, inputs: dict[str, Tensor], labels: Tensor, epoch: int, step: int) -> None:
        active = len(labels)
        values = self.values[:active].requires_grad_()
        logits = stacked_logits(self.plan, split_vectors(self.plan, values), inputs)
        if self.local.own_classes:
            logits = logits.masked_fill(self.absent[:active, :, None], -1e4)
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=_ABSENT)
        mean = losses.sum(dim=1) / (labels != _ABSENT).sum(dim=1)
        (gradients,) = torch.autograd.grad(mean.sum(), values)
        with torch.no_grad():
            gradients.mul_(self.present[:active])
            self.importance[:active].addcmul_(gradients.square(), values.square())
            gradients.add_(values - self.received[:active], alpha=self.local.pull)
            self._update(gradients, epoch, step)
