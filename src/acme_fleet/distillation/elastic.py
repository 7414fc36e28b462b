"""Knowledge distillation that makes the backbone elastic in width, then in width and depth."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.config.backbone import Distillation, LogitsLoss
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.answers import MOST_BYTES, Answers
from acme_fleet.distillation.maps import StateMaps
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.padding import clear_padding, shuffled_rows, without_padding
from acme_fleet.runs.notes import Progress, training_note
from acme_fleet.tasks.base import Task
from acme_fleet.training.augmentation import Augment
from acme_fleet.training.group import ALONE, Group
from acme_fleet.training.loop import Optimization, check_converging, in_parts, steps_of
from acme_fleet.training.precision import Numbers, mixed_precision
from acme_fleet.training.resume import EpochState

Match = Literal["states", "features"]
Origin = Literal["trained", "fine-tuned", "untouched"]
"""By the run; on the public data; not, as that did not win on validation data or needs labels."""


@dataclass(frozen=True)
class Lesson:
    """The parts of a teacher that students learn from.

    Attributes:
        match: see :class:`DistillationStep`.
        logits: whether its classifier is a teacher too. A few labels make a weak classifier, and
            a weak classifier spoils what a good encoder knows.
    """

    match: Match
    logits: bool


def lesson_of(settings: Distillation, origin: Origin, *, own_head: bool = False) -> Lesson:
    """A checkpoint teaches its features; its classifier joins if it was trained.

    With an ``own_head`` it came with the checkpoint, as a language model's does.
    """
    match = settings.match
    if match == "auto":
        match = "states" if origin == "trained" else "features"
    return Lesson(match, own_head or match == "states" or origin != "untouched")


@dataclass(frozen=True)
class DistillationStep:
    """One of the two steps of Eq. 9.

    Attributes:
        widths, depths: what the student can be.
        narrow_teacher: whether the teacher is as wide as the student, as in the second step, or
            the whole model, as in the first. It has full depth in both.
        logits_weight, embeddings_weight: λ1 and λ2.
        hidden_weight: of the hidden states, 1 in Eq. 9.
        match: what is learned beside the logits: the states of Eq. 9, or features relative to their
            variance, see :func:`features_loss`.
        hidden: shares of the hidden size that the student can have.
        random_subnetworks: how many students of each step are drawn besides the largest and the
            smallest (sandwich rule, Yu & Huang 2019).
        chances: of what is in between, how often each is drawn, relative to the others (METHOD
            13); all alike without any.
        logits_loss: l of the logits, see :func:`distillation_loss`.
    """

    widths: Sequence[float]
    depths: Sequence[int]
    narrow_teacher: bool
    logits_weight: float
    embeddings_weight: float
    random_subnetworks: int
    logits_loss: LogitsLoss = "mse"
    hidden_weight: float = 1.0
    match: Match = "states"
    hidden: Sequence[float] = (1.0,)
    chances: Mapping[Variant, int] = field(default_factory=dict[Variant, int])


def step_of(
    settings: Distillation,
    number: int,
    widths: Sequence[float],
    depths: Sequence[int],
    lesson: Lesson,
    hidden: Sequence[float] = (1.0,),
    chances: Mapping[Variant, int] | None = None,
) -> DistillationStep:
    """Step ``number`` of Eq. 9, 0 or 1, with its weights in the fleet file.

    A student at full depth is drawn as often as all that are as wide (``chances`` of candidates).
    """
    drawn: Counter[Variant] = Counter()
    for variant, count in (chances or {}).items():
        known = variant.depth in depths
        drawn[variant if known else replace(variant, depth=max(depths))] += count
    return DistillationStep(
        widths=widths,
        depths=depths,
        hidden=hidden,
        narrow_teacher=number == 1,
        logits_weight=settings.logits_weight[number] if lesson.logits else 0.0,
        embeddings_weight=settings.embeddings_weight[number],
        random_subnetworks=settings.random_subnetworks,
        chances=drawn,
        logits_loss=settings.logits_loss,
        match=lesson.match,
    )


def recovery_of(settings: Distillation, variant: Variant, lesson: Lesson) -> DistillationStep:
    """One student alone, from the whole model's logits or features; beyond the paper.

    What the layers of a small model compute need not be what a few of a large one's do, so states
    are not matched.
    """
    return DistillationStep(
        widths=[variant.width],
        depths=[variant.depth],
        hidden=[variant.hidden],
        narrow_teacher=False,
        logits_weight=1.0 if lesson.logits else 0.0,
        embeddings_weight=0.0,
        random_subnetworks=0,
        logits_loss=settings.logits_loss,
        hidden_weight=0.0,
        match=lesson.match,
    )


def distillation_loss(
    task: Task,
    student: Run,
    teacher: Run,
    layers: Sequence[int],
    logits_weight: float,
    embeddings_weight: float,
    logits_loss: LogitsLoss = "mse",
    hidden_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """λ1·l(ŷ, y) + λ2·l(Ê, E) + l(Ĥ, H), l the mean squared error (Eq. 9).

    Args:
        task: its outputs are ŷ and y.
        student, teacher: one forward pass of each on the same inputs.
        layers: for each of the student's layers the teacher's layer that it stands for.
        logits_weight, embeddings_weight: λ1 and λ2.
        logits_loss: l(ŷ, y) of the task: Eq. 9's, or the cross-entropy that the authors ran (a
            named deviation).
        hidden_weight: of l(Ĥ, H), 1 in Eq. 9.
    """
    mask = student.activations.mask
    hidden = [
        _square_error(mine, teacher.activations.hidden[layer], mask)
        for mine, layer in zip(student.activations.hidden, layers, strict=True)
    ]
    return (
        logits_weight * _imitation(task, student, teacher, logits_loss)
        + embeddings_weight
        * _square_error(student.activations.embeddings, teacher.activations.embeddings, mask)
        + hidden_weight * torch.stack(hidden).mean()
    )


def _imitation(task: Task, student: Run, teacher: Run, kind: LogitsLoss) -> Float[Tensor, ""]:
    """l(ŷ, y) over samples or, of language models, over real tokens."""
    logits, mask = [student.logits, teacher.logits], student.activations.mask
    if student.logits.ndim == 3:
        by_token = [each.movedim(1, -1) for each in logits]
        logits = [each.flatten(0, 1) if mask is None else each[mask] for each in by_token]
    return task.imitation(logits[0], logits[1], kind)


def features_loss(student: Run, teacher: Run, layers: Sequence[int]) -> Float[Tensor, ""]:
    """Hidden states and pooled vectors against a pre-trained teacher's; no labels (METHOD 16).

    Each is a squared error over the teacher's variance, channel by channel: the states of large
    encoders have a few channels that would outweigh all others.

    Args:
        student, teacher, layers: see :func:`distillation_loss`.
    """
    mine, theirs, mask = student.activations, teacher.activations, student.activations.mask
    hidden = [
        relative_error(state, theirs.hidden[layer], mask)
        for state, layer in zip(mine.hidden, layers, strict=True)
    ]
    pooled = relative_error(mine.pooled[:, None], theirs.pooled[:, None], None)
    return torch.stack(hidden).mean() + pooled


def relative_error(
    mine: Float[Tensor, "batch tokens channels"],
    theirs: Float[Tensor, "batch tokens channels"],
    mask: Bool[Tensor, "batch tokens"] | None,
) -> Float[Tensor, ""]:
    """Mean over real tokens and channels of the squared error over the channel's variance.

    A single token, or tokens that are all equal, have no variance, and their error counts 0.
    """
    return relative_errors(mine, theirs, mask).mean()


def relative_errors(
    mine: Float[Tensor, "batch tokens channels"],
    theirs: Float[Tensor, "batch tokens channels"],
    mask: Bool[Tensor, "batch tokens"] | None,
) -> Float[Tensor, "real channels"]:
    """The same of each real token and channel."""
    if mask is not None:
        mine, theirs = mine[mask], theirs[mask]
    theirs = theirs.reshape(-1, theirs.shape[-1]).float()
    variance = theirs.var(dim=0, correction=0)
    # A channel that hardly varies in this batch must not outweigh the others.
    floor = 1e-3 * variance.mean()
    floor = torch.where(floor > 0, floor, torch.inf)
    return (mine.reshape(theirs.shape) - theirs).square() / variance.clamp(min=floor)


def _square_error(
    mine: Float[Tensor, "batch tokens hidden"],
    theirs: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"] | None,
) -> Float[Tensor, ""]:
    """Mean squared error over real tokens: no state of padding is there to be learned."""
    if mask is None:
        return F.mse_loss(mine, theirs)
    each = F.mse_loss(mine, theirs, reduction="none").mean(dim=2)
    return clear_padding(each, mask).sum() / mask.sum().clamp(min=1)


def sandwich(step: DistillationStep, generator: torch.Generator) -> list[Variant]:
    """The students of one batch: the largest, the smallest, and random ones in between."""
    ends = [Variant(end(step.widths), end(step.depths), end(step.hidden)) for end in (max, min)]
    grid = itertools.starmap(Variant, itertools.product(step.widths, step.depths, step.hidden))
    middle = [variant for variant in grid if variant not in ends]
    if not middle or not step.random_subnetworks:
        return list(dict.fromkeys(ends))
    chances = torch.tensor([float(step.chances.get(variant, 0)) for variant in middle])
    if not chances.any():
        chances = torch.ones(len(middle))
    drawn = chances.multinomial(step.random_subnetworks, replacement=True, generator=generator)
    return list(dict.fromkeys([*ends, *(middle[row] for row in drawn)]))


def distill(
    task: Task,
    teacher: ElasticClassifier,
    student: ElasticClassifier,
    step: DistillationStep,
    samples: Samples,
    training: Training,
    generator: torch.Generator,
    *,
    augment: Augment | None = None,
    on_epoch: Progress | None = None,
    state: EpochState | None = None,
    numbers: Numbers | None = None,
    group: Group = ALONE,
) -> None:
    """Train the student's shared weights in place, on their device; the teacher does not change.

    Students of a smaller hidden size than their teacher's are matched through linear maps, which
    learn with them.

    Args:
        task: the distance of a student's outputs from a teacher's is its own.
        teacher, student: elastic models of one reference.
        step: what the students are, and whom they learn from.
        samples: the training data; labels are not used.
        training: epochs, batch size, learning rate, weight decay.
        generator: decides the order of the samples, the augmentation and the students.
        augment: changes each batch before teacher and students see it.
        on_epoch: called with the number of finished epochs, of all, and the loss in words.
        state: written after each epoch; if it holds something, training goes on from there.
        numbers: of matrix products, see :func:`~acme_fleet.training.precision.mixed_precision`.
        group: processes that do the same, each with its parts of every batch.

    Raises:
        Diverged: after the first epoch whose loss is no number.
    """
    maps = _maps(teacher, student, step, samples[: training.batch_size])
    learner = (
        nn.ModuleDict({"student": student.classifier, "maps": maps}) if maps else student.classifier
    )
    steps = steps_of(samples, training)
    optimization = Optimization(learner.parameters(), training, steps, group=group)
    finished = state.restore(learner, optimization, generator) if state else 0
    known = None
    alike = augment is None and not task.per_token and not _is_narrow(step)
    if alike and 1 < training.epochs > finished and training.parts * group.size == 1:
        layers = {n for depth in step.depths for n in student.shape(Variant(1.0, depth)).layers}
        if Answers.bytes_of(teacher, samples, layers) <= MOST_BYTES:
            known = Answers.asked(teacher, samples, layers, training.batch_size, numbers)
    for epoch in range(finished, training.epochs):
        total = torch.zeros((), device=optimization.parameters[0].device)
        for rows in shuffled_rows(samples, training.batch_size, generator):
            batch = without_padding(samples[rows])
            whole = augment(batch, generator) if augment else batch
            students = sandwich(step, generator)
            # Students learn from all tokens, whatever the labels.
            unlabelled = Samples(whole.inputs, None, whole.stored_bytes)
            for part, share in group.own(in_parts(unlabelled, training.parts * group.size)):
                own = task, teacher, student, step, part.inputs, students
                mask = part.inputs.get("attention_mask")
                told = known and known.to(rows, None if mask is None else mask.shape[1])
                total += teach(*own, maps, numbers, share, told)
            optimization.step()
        total = group.total(total)
        check_converging(total, optimization.parameters, epoch, training)
        if state and group.rank == 0:
            state.save(epoch + 1, learner, optimization, generator)
        if on_epoch:
            mean = float(total) / math.ceil(len(samples) / training.batch_size)
            on_epoch(epoch + 1, training.epochs, training_note(mean))


def _maps(
    teacher: ElasticClassifier, student: ElasticClassifier, step: DistillationStep, samples: Samples
) -> StateMaps | None:
    """Maps for each hidden size of the students that is not their teacher's, if there is any."""
    if min(step.hidden) == 1 or _is_narrow(step):
        return None
    largest = Variant(max(step.widths), max(step.depths))
    variants = [replace(largest, hidden=share) for share in sorted(set(step.hidden))]
    return StateMaps.fitted(teacher, student, variants, samples)


def _is_narrow(step: DistillationStep) -> bool:
    """True if a student's teacher is as wide as itself."""
    return step.narrow_teacher and step.match == "states"


def teach(
    task: Task,
    teacher: ElasticClassifier,
    student: ElasticClassifier,
    step: DistillationStep,
    inputs: dict[str, Shaped[Tensor, "batch ..."]],
    students: Sequence[Variant],
    maps: StateMaps | None = None,
    numbers: Numbers | None = None,
    share: float = 1.0,
    known: Run | None = None,
) -> Float[Tensor, ""]:
    """Gather the gradients of all students (w, d) of one batch (Eq. 9); the sum of their losses.

    A batch that is a part of another has a ``share`` of its loss.

    The teacher runs once for each width it is asked at, whatever the number of students; not if
    what it says at its whole width is ``known``. With
    ``maps`` the states of students of a smaller hidden size are compared through them.
    """
    device = student.classifier.backbone.device
    total = torch.zeros((), device=device)
    lessons = {} if known is None else {teacher.shape(teacher.whole): known}
    for variant in students:
        full_depth = replace(variant, depth=teacher.sizes.layers)
        lesson = teacher.shape(full_depth if _is_narrow(step) else teacher.whole)
        if lesson not in lessons:
            with torch.no_grad(), mixed_precision(device, numbers):
                lessons[lesson] = teacher.run(lesson, inputs)
        arch = student.shape(variant)
        with mixed_precision(device, numbers):
            run, taught = student.run(arch, inputs), lessons[lesson]
            if maps is not None and arch.hidden is not None:
                run = maps.lifted(run)
            match step.match:
                case "states":
                    weights = step.logits_weight, step.embeddings_weight
                    rest = step.logits_loss, step.hidden_weight
                    loss = distillation_loss(task, run, taught, arch.layers, *weights, *rest)
                case "features":
                    loss = features_loss(run, taught, arch.layers)
                    if step.logits_weight:
                        logits = _imitation(task, run, taught, step.logits_loss)
                        loss = loss + step.logits_weight * logits
        loss = share * loss
        loss.backward()
        total += loss.detach()
    return total
