"""Knowledge distillation that makes the backbone elastic in width, then in width and depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.data.samples import Samples
from acme_fleet.fleet import Training
from acme_fleet.models.elastic import Architecture
from acme_fleet.models.supernet import ElasticClassifier, Run
from acme_fleet.models.training import Optimization, steps_of

Augment = Callable[[Samples, torch.Generator], Samples]


@dataclass(frozen=True)
class DistillationStep:
    """One of the two steps of Eq. 9.

    Attributes:
        widths, depths: what the student can be.
        teacher_width: the teacher's width for a student of width w: always 1 in the first step,
            w itself in the second. The teacher has full depth in both.
        logits_weight, embeddings_weight: λ1 and λ2.
        random_subnetworks: how many students of each step are drawn besides the largest and the
            smallest (sandwich rule, Yu & Huang 2019).
    """

    widths: Sequence[float]
    depths: Sequence[int]
    teacher_width: Callable[[float], float]
    logits_weight: float
    embeddings_weight: float
    random_subnetworks: int


def distillation_loss(
    student: Run,
    teacher: Run,
    layers: Sequence[int],
    logits_weight: float,
    embeddings_weight: float,
) -> Tensor:
    """λ1·l(ŷ, y) + λ2·l(Ê, E) + l(Ĥ, H), l the mean squared error (Eq. 9).

    Args:
        student, teacher: one forward pass of each on the same inputs.
        layers: for each of the student's layers the teacher's layer that it stands for.
        logits_weight, embeddings_weight: λ1 and λ2.
    """
    hidden = [
        F.mse_loss(mine, teacher.activations.hidden[layer])
        for mine, layer in zip(student.activations.hidden, layers, strict=True)
    ]
    return (
        logits_weight * F.mse_loss(student.logits, teacher.logits)
        + embeddings_weight
        * F.mse_loss(student.activations.embeddings, teacher.activations.embeddings)
        + torch.stack(hidden).mean()
    )


def sandwich(step: DistillationStep, generator: torch.Generator) -> list[tuple[float, int]]:
    """The students of one batch: the largest, the smallest, and random ones in between."""

    def draw(options: Sequence[float] | Sequence[int]) -> int:
        return int(torch.randint(len(options), (1,), generator=generator))

    students = [
        (max(step.widths), max(step.depths)),
        (min(step.widths), min(step.depths)),
    ]
    for _ in range(step.random_subnetworks):
        students.append((step.widths[draw(step.widths)], step.depths[draw(step.depths)]))
    return list(dict.fromkeys(students))


def distill(
    teacher: ElasticClassifier,
    student: ElasticClassifier,
    step: DistillationStep,
    samples: Samples,
    training: Training,
    generator: torch.Generator,
    *,
    augment: Augment | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> None:
    """Train the student's shared weights in place; the teacher does not change.

    The teacher runs once per batch for each width it is asked at, whatever the number of
    students.
    """
    parameters = student.classifier.parameters()
    optimization = Optimization(parameters, training, steps_of(samples, training))
    full_depth = teacher.sizes.layers
    for epoch in range(training.epochs):
        for batch in samples.batches(training.batch_size, generator):
            inputs = (augment(batch, generator) if augment else batch).inputs
            lessons: dict[Architecture, Run] = {}
            for width, depth in sandwich(step, generator):
                lesson = teacher.shape(step.teacher_width(width), full_depth)
                if lesson not in lessons:
                    with torch.no_grad():
                        lessons[lesson] = teacher.run(lesson, inputs)
                arch = student.shape(width, depth)
                loss = distillation_loss(
                    student.run(arch, inputs),
                    lessons[lesson],
                    arch.layers,
                    step.logits_weight,
                    step.embeddings_weight,
                )
                loss.backward()
            optimization.step()
        if on_epoch:
            on_epoch(epoch + 1, training.epochs)
