"""Many devices train their headers together, with the numbers of one after another.

For a simulation on one machine: a small header's step is mostly the cost of starting it, and one
start serves all devices here. Every device keeps its own order of samples, schedule, clipping,
validation and best epoch. Memory is that of the devices of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples
from acme_fleet.device.refinement import LocalTraining, Trained
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.unpruned import expand, presence, shrink, unpruned
from acme_fleet.simulation.stacked import join_tensors, split_vectors, stacked_logits
from acme_fleet.tasks.base import ABSENT, Evaluation, Task
from acme_fleet.training.loop import learning_rate_scale

_EVALUATED = 64  # validation samples of a device at a time
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # PyTorch's defaults for AdamW


def train_headers(
    task: Task,
    devices: Iterable[LocalTraining],
    training: Training,
    together: int = 100,
    *,
    to_mix: bool = False,
) -> Iterator[Trained]:
    """``train_header`` for each device, computed for ``together`` devices at a time.

    Args:
        task: of all.
        devices: their headers have one genotype; each may be pruned in its own way. They are
            taken from the iterable only as they are needed.
        training: the same for all.
        together: devices in a batch; memory grows with it.
        to_mix: the last epoch is kept and not the best, see ``train_header``.

    Raises:
        ValueError: if headers of a batch differ in more than what is pruned.
    """
    waiting = iter(devices)
    while batch := list(islice(waiting, together)):
        yield from _train_batch(task, batch, training, to_mix)


def _train_batch(
    task: Task, batch: Sequence[LocalTraining], training: Training, to_mix: bool
) -> list[Trained]:
    plan = unpruned(batch[0].header.plan)
    if any(unpruned(device.header.plan) != plan for device in batch):
        raise ValueError("headers of different genotypes or sizes cannot be trained together")
    # Devices with more steps first: those that are not finished are then always the first.
    order = sorted(range(len(batch)), key=lambda i: -len(batch[i].features.train))
    trained = _Batch(task, plan, [batch[i] for i in order], training).run(to_mix)
    results = dict(zip(order, trained, strict=True))
    return [results[i] for i in range(len(batch))]


class _Padded:
    """Samples of several devices in one tensor; samples that do not exist have an absent label.

    ``inputs`` have the axes ``(device, sample, channel, *grid)``, ``labels`` and ``order``, which
    sample comes when, ``(device, sample)``.
    """

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.counts = [len(part) for part in parts]
        most = max(self.counts)
        self.inputs = {
            name: torch.zeros(len(parts), most, *first.shape[1:], dtype=first.dtype)
            for name, first in parts[0].inputs.items()
        }
        self.labels = torch.full((len(parts), most), ABSENT)
        self.order = torch.arange(most).repeat(len(parts), 1)
        for row, part in enumerate(parts):
            self.labels[row, : len(part)] = part.labels
            for name, values in part.inputs.items():
                self.inputs[name][row, : len(part)] = values

    def shuffle(self, generators: Iterable[torch.Generator]) -> None:
        """Draw each device's order of its samples anew."""
        for row, generator in enumerate(generators):
            count = self.counts[row]
            self.order[row, :count] = torch.randperm(count, generator=generator)

    def batch(
        self, start: int, size: int, devices: int
    ) -> tuple[dict[str, Shaped[Tensor, "batch devices ..."]], Int[Tensor, "devices batch"]]:
        """Inputs and labels of the first devices' samples from ``start`` on; there may be none."""
        order = self.order[:devices, start : start + size]
        rows = order.T + self.order.shape[1] * torch.arange(devices)
        inputs = {
            name: values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
            for name, values in self.inputs.items()
        }
        return inputs, self.labels[:devices].gather(1, order)


@dataclass
class _Best:
    """Each device's best parameters so far by its validation split."""

    values: Float[Tensor, "devices parameters"]
    results: list[Evaluation]

    def take(
        self, values: Float[Tensor, "devices parameters"], results: Sequence[Evaluation]
    ) -> None:
        """Replace the rows that are better now."""
        for row, result in enumerate(results):
            if result.better_than(self.results[row]):
                self.values[row], self.results[row] = values[row], result


class _Batch:
    """The state of one batch: each device's parameters and AdamW moments are a row."""

    def __init__(
        self,
        task: Task,
        plan: HeaderPlan,
        devices: Sequence[LocalTraining],
        training: Training,
    ) -> None:
        self.task, self.plan, self.devices, self.training = task, plan, devices, training
        headers = [device.header for device in devices]
        self.values = torch.stack(
            [join_tensors(plan, expand(h.plan, h.state_dict())) for h in headers]
        )
        self.present = torch.stack([join_tensors(plan, presence(h.plan)) for h in headers])
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        self.importance = torch.zeros_like(self.values)
        self.counted = torch.zeros(len(devices), 1)
        self.data = _Padded([device.features.train for device in devices])
        self.validation = _Padded([device.features.validation for device in devices])
        self.steps = [math.ceil(n / training.batch_size) for n in self.data.counts]

    def run(self, to_mix: bool) -> list[Trained]:
        start = self.values.clone()
        best = None if to_mix else _Best(start, self._evaluate())
        for epoch in range(self.training.epochs):
            self.data.shuffle(device.generator for device in self.devices)
            for step in range(self.steps[0]):
                active, size = sum(steps > step for steps in self.steps), self.training.batch_size
                self._step(*self.data.batch(step * size, size, active), epoch, step)
            if best:
                best.take(self.values, self._evaluate())
        sound = self.values.isfinite().all(dim=1, keepdim=True)
        return self._results(best.values if best else torch.where(sound, self.values, start))

    def _step(
        self,
        inputs: dict[str, Shaped[Tensor, "samples active ..."]],
        labels: Int[Tensor, "active samples"],
        epoch: int,
        step: int,
    ) -> None:
        """One step of AdamW with clipping for the first devices, as in ``Optimization``."""
        active = len(labels)
        values = self.values[:active].requires_grad_()
        logits = self._logits(values, inputs)
        losses = self.task.loss(logits, labels, "none")
        mean = losses.sum(dim=1) / (labels != ABSENT).sum(dim=1)
        (gradients,) = torch.autograd.grad(mean.sum(), values)
        with torch.no_grad():
            gradients.mul_(self.present[:active])
            squares = gradients.square() * values.square()
            sound = squares.isfinite().all(dim=1, keepdim=True)  # no more once it has diverged
            self.importance[:active] += torch.where(sound, squares, 0.0)
            self.counted[:active] += sound
            self._update(gradients, epoch, step)

    def _logits(
        self,
        values: Float[Tensor, "active parameters"],
        inputs: Mapping[str, Shaped[Tensor, "samples active ..."]],
    ) -> Float[Tensor, "active classes samples"]:
        return stacked_logits(self.plan, split_vectors(self.plan, values), inputs)

    def _update(self, gradients: Float[Tensor, "active parameters"], epoch: int, step: int) -> None:
        active, training = len(gradients), self.training
        values, first, second = self.values[:active], self.first[:active], self.second[:active]
        done = [epoch * steps + step for steps in self.steps[:active]]
        ends = [training.epochs * steps for steps in self.steps[:active]]
        scales = [learning_rate_scale(at, end) for at, end in zip(done, ends, strict=True)]
        rate = training.learning_rate * torch.tensor(scales)[:, None]
        number = torch.tensor(done)[:, None] + 1
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        gradients.mul_((1.0 / (norms + 1e-6)).clamp(max=1.0))
        values.mul_(1 - rate * training.weight_decay)
        first.lerp_(gradients, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradients, gradients, value=1 - _BETAS[1])
        scale = (1 - _BETAS[1] ** number.double()).sqrt().float()
        denominator = second.sqrt().div_(scale).add_(_EPSILON)
        values.sub_(first / denominator * (rate / (1 - _BETAS[0] ** number.double()).float()))

    @torch.no_grad()
    def _evaluate(self) -> list[Evaluation]:
        """Each device's evaluation on its validation split."""
        tensors, results = split_vectors(self.plan, self.values), [Evaluation()] * len(self.devices)
        for start in range(0, self.validation.labels.shape[1], _EVALUATED):
            inputs, labels = self.validation.batch(start, _EVALUATED, len(self.devices))
            new = self.task.evaluations(stacked_logits(self.plan, tensors, inputs), labels)
            results = [result + more for result, more in zip(results, new, strict=True)]
        return results

    def _results(self, best: Float[Tensor, "devices parameters"]) -> list[Trained]:
        tensors = split_vectors(self.plan, best)
        mean = self.importance / self.counted.clamp(min=1)
        squares, present = (split_vectors(self.plan, x) for x in (mean, self.present.to(mean)))
        importance = {
            layer: squares[f"layers.{layer}.weight"].flatten(2).sum(dim=2)
            + squares[f"layers.{layer}.bias"]
            for layer in self.plan.layers
        }
        told = torch.stack([of.any(dim=1) for of in importance.values()]).any(dim=0)[:, None]
        importance = {  # alike for all where nothing tells one from another
            layer: torch.where(told, of, present[f"layers.{layer}.bias"])
            for layer, of in importance.items()
        }
        return [
            (
                shrink(device.header.plan, {name: of[i] for name, of in tensors.items()}),
                ImportanceSet.of({layer: of[i] for layer, of in importance.items()}),
            )
            for i, device in enumerate(self.devices)
        ]
