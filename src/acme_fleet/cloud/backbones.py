"""Algorithm 1, lines 2-4: θ0, the elastic backbone, and sub-networks that are recovered alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acme_fleet.cloud.crew import UNAIDED, Crew
from acme_fleet.cloud.first_pass import Costs, Judge, judged
from acme_fleet.cloud.objectives import Grid, Quality, chances, sent_quality
from acme_fleet.cloud.stored import read_importance, read_quality, write_quality
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import (
    DistillationStep,
    Lesson,
    Origin,
    lesson_of,
    recovery_of,
    step_of,
)
from acme_fleet.distillation.importance import objective_of, taylor_importance
from acme_fleet.distillation.maps import mapped_heads
from acme_fleet.distillation.reference import (
    ReferenceResult,
    described,
    fitted_origin,
    known_pooling,
    origin_of,
    public_probe,
)
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier
from acme_fleet.models.pooling import pool_by
from acme_fleet.models.storage import clone_state, read_tensors, write_tensors
from acme_fleet.runs.notes import Progress
from acme_fleet.runs.sealed import if_sound
from acme_fleet.seeding import generator
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.augmentation import augmentation
from acme_fleet.training.loop import diverging
from acme_fleet.training.memory import give_back
from acme_fleet.training.precision import (
    Numbers,
    known_numbers,
    training_device,
    training_numbers,
)
from acme_fleet.training.resume import EpochState

_TOGETHER = 64  # samples whose outputs of all layers are in memory, where importance is measured
_MAPPED = 1024  # public training samples that maps between features are fitted on
_FOUND: dict[Origin, str] = {
    "untouched": "the untouched checkpoint is kept: no epoch was better on validation data",
    "fine-tuned": "fine-tuned: better than the untouched checkpoint on validation data",
}
_STEPS = ("width-elastic", "elastic")  # what the two steps of Eq. 9 make
_REORDERED, _IMPORTANCE, _COMPUTE = "reordered", "importance.safetensors", "compute.json"

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Surrounds the work of a stage of this name."""


class Backbones:
    """The reference and what is made of it; each stage's result is a file, and is made once."""

    def __init__(
        self,
        settings: Fleet,
        public: Splits,
        class_names: list[str],
        folder: Path,
        stage: Stage,
        reference: Classifier,
        crew: Crew = UNAIDED,
    ) -> None:
        """``reference`` is θ0 before any training, see ``untrained_reference``; it is trained."""
        self._settings = settings
        self._task = task_of(settings.task)
        self._distillation = settings.backbone.distillation
        self._public = public
        self._class_names = class_names
        self._folder = folder
        self._stage = stage
        self._crew = crew
        self._accelerator = training_device(settings.accelerator, "accelerator")
        self._initial = reference
        self._origin: Origin = "trained"  # until it is prepared
        self.whole = reference
        """θ0; trained, once it is prepared."""
        self._teacher: ElasticClassifier | None = None  # where features are learned
        padding, flip = settings.reference.crop_padding, settings.reference.flip
        self._augment = augmentation(padding, flip=flip)
        self.trial_epochs = settings.trial_epochs

    def reference(self) -> tuple[ReferenceResult, Classifier]:
        """θ0, trained, or a checkpoint that is fine-tuned unless ``acme reference`` did that."""
        settings = self._settings.reference
        fitted = fitted_origin(settings, self._class_names, self._initial)
        if fitted is not None:
            reference, self._origin = self._initial, fitted
        else:
            start = self._untouched()
            before = clone_state(start)  # stages train what they get

            def train(model: Classifier, progress: Progress) -> Classifier:
                latest: list[Any] = [1, 1, ""]

                def epoch(*so_far: Any) -> None:
                    latest[: len(so_far)] = so_far
                    progress(*so_far)

                trained = self._train_reference(model, epoch).cpu()
                if told := _FOUND.get(origin_of(settings, before, trained)):
                    _, epochs, note, *_ = latest
                    progress(epochs, epochs, f"{told}{note and f'; last epoch: {note}'}")
                return trained

            with diverging("training the reference", "reference.training.learning_rate"):
                reference = self._staged("reference", start, train)
            self._origin = origin_of(settings, before, reference)
        return described(self._task, reference, self._public.test, self._origin), reference

    def prepare(self) -> tuple[ReferenceResult, ElasticClassifier]:
        """Train θ0, order it by importance, make it elastic by distillation."""
        result, reference = self.reference()
        self.whole = reference  # reordering it in place changes no answer
        known = if_sound(self._folder / _IMPORTANCE, read_importance)
        ordered = self._staged(_REORDERED, reference, self._reorder, again=known is None)
        if self._lesson().match == "features":
            self._teacher = self._elastic(ordered).frozen_copy()
        with diverging("distillation", "backbone.distillation.training.learning_rate"):
            wide = self._staged(_STEPS[0], ordered, self._distill_width)
            elastic = self._staged(_STEPS[1], wide, self._distill_depth)
        return result, self._elastic(elastic)

    def _untouched(self) -> Classifier:
        """θ0 before any training; a checkpoint is pooled as it should be, and has a classifier."""
        model, settings = self._initial, self._settings.reference
        if settings.checkpoint is None or not self._public.labelled or self._task.per_token:
            return model
        path = self._folder / "probe.safetensors"
        if (stored := if_sound(path, read_tensors)) is None:
            with self._stage("probe"):
                known = known_pooling(settings, model.backbone.config.hidden_size)
                pooling, head = public_probe(self._task, model, self._public, known)
            stored = head, {"pooling": pooling}
            write_tensors(path, *stored)
        head, about = stored
        way: Any = about["pooling"]
        pool_by(model.backbone, way)
        model.head.load_state_dict(head)
        return model

    def _elastic(self, model: Classifier) -> ElasticClassifier:
        """A reordered model as what any of its sub-networks can be cut from."""
        if self._settings.backbone.allocation == "uniform":
            return ElasticClassifier(model)
        return ElasticClassifier(model, read_importance(self._folder / _IMPORTANCE))

    def _staged(
        self,
        name: str,
        before: Classifier,
        work: Callable[[Classifier, Progress], Classifier],
        *,
        again: bool = False,
    ) -> Classifier:
        """Do a stage's work on a model, or read what an earlier start left on disk.

        It is done ``again`` where something else that it had made is missing or damaged.
        """
        path = self._folder / f"{name}.safetensors"
        stored = None if again else if_sound(path, read_tensors)
        if stored is None:
            with self._stage(name) as progress:
                after = work(before.to(self._accelerator), progress).cpu()
            before.cpu()
            write_tensors(path, after.state_dict(), {})
            give_back()
            stored = read_tensors(path)
        self._epochs(name).remove()
        model = ElasticClassifier(before).frozen_copy().classifier
        model.load_state_dict(stored[0])
        return model.requires_grad_(True)

    def _epochs(self, name: str) -> EpochState:
        """The saved state of an unfinished stage."""
        return EpochState(self._folder / f"{name}-epochs.safetensors")

    def _train_reference(self, model: Classifier, progress: Progress) -> Classifier:
        given = model, self._settings.reference, self._public, self._draw("reference training")
        rest = self._augment, progress, self._numbers(model)
        return self._crew.train_reference(self._task, *given, *rest)

    def _reorder(self, model: Classifier, progress: Progress) -> Classifier:
        settings = self._settings.backbone
        samples = self._public.train[: settings.importance_samples]
        purpose = settings.importance, self._draw("importance")
        objective = objective_of(self._task, *purpose, labelled=samples.labelled)
        together = min(_TOGETHER, self._task.at_once)
        found = taylor_importance(model, samples, objective, together)
        if not all(bool(values.isfinite().all()) for values in found):
            raise FleetError(
                "the importance of heads, neurons and channels is no finite number: the "
                "reference's loss is too large; set a lower reference.training.learning_rate and "
                "start anew"
            )
        model.cpu()
        named = vars(Importance.sorted(found.heads, found.neurons))
        write_tensors(self._folder / _IMPORTANCE, named, {})
        # Where no candidate is cut there, the channels stay, and with them every sum's order.
        channels = found.channels if min(settings.hidden) < 1 else None
        return reorder_classifier(model, found.heads, found.neurons, channels)

    def _distill_width(self, model: Classifier, progress: Progress) -> Classifier:
        """First step of Eq. 9: teacher θ0, students of all widths at full depth."""
        return self._taught(model, 0, [dimensions(model.backbone.config).layers], progress)

    def _distill_depth(self, model: Classifier, progress: Progress) -> Classifier:
        """Second step of Eq. 9: teacher of the same width at full depth."""
        return self._taught(model, 1, sorted({*self._settings.backbone.depths}), progress)

    def _taught(
        self, model: Classifier, number: int, depths: list[int], progress: Progress
    ) -> Classifier:
        lesson, settings = self._lesson(), self._settings.backbone
        widths, hidden = self._sizes(settings.widths), self._sizes(settings.hidden)
        often = chances(self._elastic(model), self._settings)
        step = step_of(self._distillation, number, widths, depths, lesson, hidden, often)
        draw, training = self._draw("distillation", number), self._distillation.training
        return self._distill(model, _STEPS[number], step, training, draw, progress)

    def _lesson(self) -> Lesson:
        return lesson_of(self._distillation, self._origin, own_head=self._task.per_token)

    def _sizes(self, shares: list[float]) -> list[float]:
        """All that students are trained at; the whole too, unless it stays the reference."""
        own = self._lesson().match == "states"
        return sorted({*shares, *([1.0] if own else [])})

    def _mapped(self) -> Samples | None:
        """Samples that maps to the reference's features are fitted on, if those judge candidates.

        Features alone are learned up to a map where hidden sizes differ: the reference's classifier
        reads them through it.
        """
        if min(self._settings.backbone.hidden) == 1 or self._lesson().logits:
            return None
        return self._public.train[:_MAPPED]

    # --- a sub-network alone; beyond the paper ---

    def recovered(self, elastic: ElasticClassifier, variant: Variant) -> ElasticClassifier:
        """A chosen sub-network distilled alone, from the whole model.

        If it was tried, it goes on from there.
        """
        training, shape = self._distillation.recovery, variant.trained
        if shape == elastic.whole:
            return self._whole(elastic)  # it has nobody to learn from
        if training is None:
            return elastic
        start = self.tried(elastic, shape) if self.trial_epochs else elastic
        if rest := training.epochs - self.trial_epochs:
            return self._alone(start, elastic, shape, "recovered", rest)
        return start

    def tried(self, elastic: ElasticClassifier, shape: Variant) -> ElasticClassifier:
        """A finalist after its share of the recovery."""
        return self._alone(elastic, elastic, shape, "tried", self.trial_epochs)

    def _alone(
        self,
        start: ElasticClassifier,
        teacher: ElasticClassifier,
        shape: Variant,
        stage: str,
        epochs: int,
    ) -> ElasticClassifier:
        name, recovery = f"{stage}-{shape.name}", self._distillation.recovery
        assert recovery is not None

        def work(model: Classifier, progress: Progress) -> Classifier:
            step = recovery_of(self._distillation, shape, self._lesson())
            training = recovery.model_copy(update={"epochs": epochs})
            draw = self._draw("recovery", name)
            return self._distill(model, name, step, training, draw, progress, teacher)

        alone = start.frozen_copy().classifier.requires_grad_(True)
        with diverging(name, "backbone.distillation.recovery.learning_rate"):
            return self._elastic(self._staged(name, alone, work))

    # --- judged and sent ---

    def head_of(self, elastic: ElasticClassifier, variant: Variant) -> nn.Linear:
        """The classifier that goes with a sub-network."""
        known = self._mapped()
        if known is None or variant.trained == elastic.whole:
            return elastic.extract_head(elastic.shape(variant))
        return mapped_heads(elastic, self._whole(elastic), [variant], known)[0]

    def _whole(self, elastic: ElasticClassifier) -> ElasticClassifier:
        """The whole model; of a checkpoint the reference, whose weights were never shared."""
        return self._teacher or elastic

    def _draw(self, *purpose: str | int) -> torch.Generator:
        return generator(self._settings.seed, *purpose)

    @property
    def numbers(self) -> Numbers:
        """Those that stages are trained with; float32 before the first one is."""
        return known_numbers(self._settings.compute, self._folder / _COMPUTE)

    def _numbers(self, model: Classifier) -> Numbers:
        """The same, decided once in a run, with the reference."""
        batch = self._public.train[: self._settings.reference.training.batch_size]

        def loss() -> torch.Tensor:
            return model(**batch.inputs).square().mean()

        return training_numbers(self._settings.compute, model, loss, self._folder / _COMPUTE)

    def _distill(
        self,
        model: Classifier,
        name: str,
        step: DistillationStep,
        training: Training,
        draw: torch.Generator,
        progress: Progress,
        whole: ElasticClassifier | None = None,
    ) -> Classifier:
        """Teach in place; where states are learned, by ``whole`` or the model as it begins."""
        student = self._elastic(model)
        teacher = self._teacher  # the reference itself, whatever the student's width
        if teacher is None:
            teacher = (whole or student).frozen_copy()
        elif min(*step.widths, *step.hidden) == 1.0 and len(step.depths) == 1:
            return model  # the whole model would learn from itself
        teacher.classifier.to(self._accelerator)
        lesson = teacher, student, step, self._public.train, training, draw
        self._crew.distill(
            self._task,
            *lesson,
            augment=self._augment,
            on_epoch=progress,
            state=self._epochs(name),
            numbers=self._numbers(model),
        )
        return model

    def quality(self, elastic: ElasticClassifier, grid: Grid, costs: Costs) -> Quality:
        """Loss and score of each candidate on the public validation data (Eq. 10)."""
        few, draw = self._settings.backbone.first_pass, self._draw("first pass")
        validation = self._public.validation
        name, stage, count = "candidates", "candidate losses", len(grid)

        def work(judge: Judge) -> Quality:
            return judged(judge, grid, validation, costs, few, draw)

        return self._judged(name, stage, elastic, work, count)

    def quality_tried(self, elastic: ElasticClassifier, variants: Sequence[Variant]) -> Quality:
        """The same of a finalist at some precisions, after its share of the recovery."""
        shape, grid = variants[0].trained, Grid(tuple(variants))
        name, stage, count = f"tried-{shape.name}", f"loss of {shape.name}", len(grid)
        tried, validation = self.tried(elastic, shape), self._public.validation
        return self._judged(name, stage, tried, lambda judge: judge(grid, validation), count)

    def _judged(
        self,
        name: str,
        stage: str,
        elastic: ElasticClassifier,
        work: Callable[[Judge], Quality],
        count: int,
    ) -> Quality:
        """Judge ``count`` candidates, or read what an earlier start left; all as it is read."""
        path = self._folder / f"{name}.json"
        known = if_sound(path, read_quality)
        if known is None or len(known.losses) != count:  # an older version's defaults were others
            with self._stage(stage) as progress:
                elastic.classifier.to(self._accelerator)
                models, known = (self._task, elastic, self._whole(elastic)), self._mapped()
                found = work(partial(sent_quality, *models, progress=progress, known=known))
                elastic.classifier.cpu()
            write_quality(path, found)
        return read_quality(path)
