"""Knowledge distillation that makes the backbone elastic in width, then in width and depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.data.samples import Samples
from acme_fleet.fleet import Distillation, Training
from acme_fleet.models.elastic import Architecture
from acme_fleet.models.epoch_state import EpochState
from acme_fleet.models.padding import clear_padding
from acme_fleet.models.supernet import ElasticClassifier, Run
from acme_fleet.models.training import Optimization, check_converging, mixed_precision, steps_of

LogitsLoss = Literal["mse", "soft_cross_entropy"]
Augment = Callable[[Samples, torch.Generator], Samples]


@dataclass(frozen=True)
class DistillationStep:
    """One of the two steps of Eq. 9.

    Attributes:
        widths, depths: what the student can be.
        teacher_width: the teacher's width for a student of width w: always 1 in the first step,
            w itself in the second. The teacher has full depth in both.
        logits_weight, embeddings_weight: λ1 and λ2.
        hidden_weight: of the hidden states, 1 in Eq. 9.
        random_subnetworks: how many students of each step are drawn besides the largest and the
            smallest (sandwich rule, Yu & Huang 2019).
        logits_loss: l of the logits, see :func:`distillation_loss`.
    """

    widths: Sequence[float]
    depths: Sequence[int]
    teacher_width: Callable[[float], float]
    logits_weight: float
    embeddings_weight: float
    random_subnetworks: int
    logits_loss: LogitsLoss = "mse"
    hidden_weight: float = 1.0


def step_of(
    settings: Distillation,
    number: int,
    widths: Sequence[float],
    depths: Sequence[int],
    teacher_width: Callable[[float], float],
) -> DistillationStep:
    """Step ``number`` of Eq. 9, 0 or 1, with its weights in the fleet file."""
    return DistillationStep(
        widths=widths,
        depths=depths,
        teacher_width=teacher_width,
        logits_weight=settings.logits_weight[number],
        embeddings_weight=settings.embeddings_weight[number],
        random_subnetworks=settings.random_subnetworks,
        logits_loss=settings.logits_loss,
    )


def recovery_of(settings: Distillation, width: float, depth: int) -> DistillationStep:
    """One student alone, from the whole model's logits; beyond the paper.

    What the layers of a small model compute need not be what a few of a large one's do.
    """
    return DistillationStep(
        widths=[width],
        depths=[depth],
        teacher_width=lambda width: 1.0,
        logits_weight=1.0,
        embeddings_weight=0.0,
        random_subnetworks=0,
        logits_loss=settings.logits_loss,
        hidden_weight=0.0,
    )


def distillation_loss(
    student: Run,
    teacher: Run,
    layers: Sequence[int],
    logits_weight: float,
    embeddings_weight: float,
    logits_loss: LogitsLoss = "mse",
    hidden_weight: float = 1.0,
) -> Tensor:
    """λ1·l(ŷ, y) + λ2·l(Ê, E) + l(Ĥ, H), l the mean squared error (Eq. 9).

    Args:
        student, teacher: one forward pass of each on the same inputs.
        layers: for each of the student's layers the teacher's layer that it stands for.
        logits_weight, embeddings_weight: λ1 and λ2.
        logits_loss: l(ŷ, y): Eq. 9's, or the cross-entropy −Σ softmax(y)·log softmax(ŷ) that
            the authors ran (a named deviation).
        hidden_weight: of l(Ĥ, H), 1 in Eq. 9.
    """
    mask = student.activations.mask
    hidden = [
        _square_error(mine, teacher.activations.hidden[layer], mask)
        for mine, layer in zip(student.activations.hidden, layers, strict=True)
    ]
    logits = (
        F.mse_loss(student.logits, teacher.logits)
        if logits_loss == "mse"
        else F.cross_entropy(student.logits, teacher.logits.softmax(dim=1))
    )
    return (
        logits_weight * logits
        + embeddings_weight
        * _square_error(student.activations.embeddings, teacher.activations.embeddings, mask)
        + hidden_weight * torch.stack(hidden).mean()
    )


def _square_error(
    mine: Float[Tensor, "batch tokens hidden"],
    theirs: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"] | None,
) -> Tensor:
    """Mean squared error over real tokens: no state of padding is there to be learned."""
    if mask is None:
        return F.mse_loss(mine, theirs)
    each = F.mse_loss(mine, theirs, reduction="none").mean(dim=2)
    return clear_padding(each, mask).sum() / mask.sum().clamp(min=1)


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
    state: EpochState | None = None,
) -> None:
    """Train the student's shared weights in place, on their device; the teacher does not change.

    Args:
        teacher, student: elastic models of one reference.
        step: what the students are, and whom they learn from.
        samples: the training data; labels are not used.
        training: epochs, batch size, learning rate, weight decay.
        generator: decides the order of the samples, the augmentation and the students.
        augment: changes each batch before teacher and students see it.
        on_epoch: called with the number of finished epochs, and of all.
        state: written after each epoch; if it holds something, training goes on from there.

    Raises:
        Diverged: after the first epoch whose loss is no number.
    """
    parameters = student.classifier.parameters()
    optimization = Optimization(parameters, training, steps_of(samples, training))
    finished = state.restore(student.classifier, optimization, generator) if state else 0
    for epoch in range(finished, training.epochs):
        total = torch.zeros((), device=optimization.parameters[0].device)
        for batch in samples.batches(training.batch_size, generator):
            inputs = (augment(batch, generator) if augment else batch).inputs
            total += teach(teacher, student, step, inputs, sandwich(step, generator))
            optimization.step()
        check_converging(total, optimization.parameters, epoch, training)
        if state:
            state.save(epoch + 1, student.classifier, optimization, generator)
        if on_epoch:
            on_epoch(epoch + 1, training.epochs)


def teach(
    teacher: ElasticClassifier,
    student: ElasticClassifier,
    step: DistillationStep,
    inputs: dict[str, Tensor],
    students: Sequence[tuple[float, int]],
) -> Tensor:
    """Gather the gradients of all students (w, d) of one batch (Eq. 9); the sum of their losses.

    The teacher runs once for each width it is asked at, whatever the number of students.
    """
    device = student.classifier.head.weight.device
    total = torch.zeros((), device=device)
    lessons: dict[Architecture, Run] = {}
    for width, depth in students:
        lesson = teacher.shape(step.teacher_width(width), teacher.sizes.layers)
        if lesson not in lessons:
            with torch.no_grad(), mixed_precision(device):
                lessons[lesson] = teacher.run(lesson, inputs)
        arch = student.shape(width, depth)
        with mixed_precision(device):
            loss = distillation_loss(
                student.run(arch, inputs),
                lessons[lesson],
                arch.layers,
                step.logits_weight,
                step.embeddings_weight,
                step.logits_loss,
                step.hidden_weight,
            )
        loss.backward()
        total += loss.detach()
    return total
