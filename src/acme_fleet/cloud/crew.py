"""The cloud's trainings by several processes, each with a GPU of its own; started by torchrun.

One process is the run. The others wait for its trainings, and compute parts of every batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from acme_fleet.config.backbone import Pooling, Reference
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.data.partition import World, load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import DistillationStep, distill
from acme_fleet.distillation.reference import train_reference, untrained_reference
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.features import Classifier
from acme_fleet.models.pooling import pool_by
from acme_fleet.runs.notes import Progress
from acme_fleet.seeding import threads
from acme_fleet.tasks.base import Task
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.augmentation import Augment, augmentation
from acme_fleet.training.group import ALONE, Group, joined
from acme_fleet.training.precision import Numbers, training_device
from acme_fleet.training.resume import EpochState


@dataclass(frozen=True)
class Weights:
    """A classifier's tensors, and what of it learns."""

    tensors: dict[str, Tensor]
    learned: frozenset[str]
    pooling: Pooling

    @staticmethod
    def of(model: Classifier) -> Weights:
        """As the model is now."""
        return Weights(
            {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
            frozenset(name for name, p in model.named_parameters() if p.requires_grad),
            model.backbone.config.pooling,
        )

    def model(self, like: Classifier) -> Classifier:
        """A classifier of the same shapes with these weights."""
        made = copy.deepcopy(like)
        pool_by(made.backbone, self.pooling)
        made.load_state_dict(self.tensors)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name in self.learned)
        return made


@dataclass(frozen=True)
class Lessons:
    """The rest of what :func:`~acme_fleet.distillation.elastic.distill` is given."""

    teacher: Weights
    importance: Importance | None
    step: DistillationStep
    training: Training
    epochs: EpochState


@dataclass(frozen=True)
class Job:
    """A training: of the reference, or a distillation; ``draw`` is its generator's state."""

    model: Weights
    draw: Tensor
    numbers: Numbers
    lessons: Lessons | None = None


@dataclass(frozen=True)
class Crew:
    """The run's process with those that help it; alone it just trains."""

    group: Group = ALONE

    def train_reference(
        self,
        task: Task,
        model: Classifier,
        settings: Reference,
        public: Splits,
        generator: torch.Generator,
        augment: Augment | None,
        progress: Progress,
        numbers: Numbers,
    ) -> Classifier:
        """:func:`~acme_fleet.distillation.reference.train_reference`, by all."""
        if self.group.size > 1:
            self.group.told(Job(Weights.of(model), generator.get_state(), numbers))
        rest = generator, augment, progress, numbers, self.group
        return train_reference(task, model, settings, public, *rest)

    def distill(
        self,
        task: Task,
        teacher: ElasticClassifier,
        student: ElasticClassifier,
        step: DistillationStep,
        samples: Samples,
        training: Training,
        generator: torch.Generator,
        *,
        augment: Augment | None,
        on_epoch: Progress,
        state: EpochState,
        numbers: Numbers,
    ) -> None:
        """:func:`~acme_fleet.distillation.elastic.distill`, by all."""
        if self.group.size > 1:
            about = teacher.importance, step, training, state
            lessons = Lessons(Weights.of(teacher.classifier), *about)
            weights, draw = Weights.of(student.classifier), generator.get_state()
            self.group.told(Job(weights, draw, numbers, lessons))
        distill(
            *(task, teacher, student, step, samples, training, generator),
            augment=augment,
            on_epoch=on_epoch,
            state=state,
            numbers=numbers,
            group=self.group,
        )


UNAIDED = Crew()


def help_to_train(fleet: Fleet) -> None:
    """Do this process' part of every training of a run, until that is over.

    Raises:
        FleetError: if there is no GPU left for it.
    """
    with joined(fleet.accelerator) as group, threads(fleet.threads):
        world = load_world(fleet, [])
        reference = untrained_reference(fleet, world.public, world.classes, world.vocabulary)
        while (job := group.told()) is not None:
            _take_part(job, fleet, world, reference, group)


def _take_part(job: Job, fleet: Fleet, world: World, like: Classifier, group: Group) -> None:
    settings, public, task = fleet.reference, world.public, task_of(fleet.task)
    place = training_device(fleet.accelerator, "accelerator")
    draw = torch.Generator()
    draw.set_state(job.draw)  # the seed is a part of it
    augment = augmentation(settings.crop_padding, flip=settings.flip)
    model = job.model.model(like).to(place)
    if (asked := job.lessons) is None:
        rest = draw, augment, lambda *_: None, job.numbers, group
        train_reference(task, model, settings, public, *rest)
        return
    teacher = asked.teacher.model(like).to(place)
    distill(
        task,
        ElasticClassifier(teacher, asked.importance).frozen_copy(),
        ElasticClassifier(model, asked.importance),
        asked.step,
        public.train,
        asked.training,
        draw,
        augment=augment,
        state=asked.epochs,
        numbers=job.numbers,
        group=group,
    )
