"""The cloud server's role, Algorithm 1: an elastic backbone, and the right part for each edge."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict

from acme_fleet.cloud.choices import Candidates, ClusterChoice, choose_for
from acme_fleet.cloud.importance import objective_of, taylor_importance
from acme_fleet.cloud.objectives import (
    Quality,
    candidate_grid,
    candidate_sizes,
    sent_quality,
    without_loss,
)
from acme_fleet.cloud.reference import (
    ReferenceResult,
    described,
    known_pooling,
    origin_of,
    public_probe,
    train_reference,
)
from acme_fleet.cloud.replies import Assigned, check_finished, check_profile
from acme_fleet.config.devices import Part
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Splits
from acme_fleet.distillation.elastic import (
    DistillationStep,
    Lesson,
    Origin,
    distill,
    lesson_of,
    recovery_of,
    step_of,
)
from acme_fleet.errors import FleetError
from acme_fleet.links.base import Link
from acme_fleet.links.roll_call import RollCall
from acme_fleet.messages.cloud_edge import BackboneAssignment, ClusterProfile, ClusterReport
from acme_fleet.messages.edge_device import ProfileRequest
from acme_fleet.models.backbone.elastic import reorder
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier, patches
from acme_fleet.models.storage import clone_state, config_document, read_tensors, write_tensors
from acme_fleet.runs.journal import Journal, Progress
from acme_fleet.runs.sealed import if_sound, read_sealed_json, write_sealed_json
from acme_fleet.seeding import generator
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.augmentation import augmentation
from acme_fleet.training.loop import diverging
from acme_fleet.training.precision import training_device
from acme_fleet.training.resume import EpochState

_DAY_S = 86_400.0
_STEPS = ("width-elastic", "elastic")  # what the two steps of Eq. 9 make
_REORDERED, _IMPORTANCE = "reordered", "importance.safetensors"


@dataclass(frozen=True)
class _StoredQuality:
    """``candidates.json``: a number for each candidate; a loss need not be finite.

    Without labels there are no accuracies.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    losses: list[float]
    accuracies: list[float] | None


class CloudServer:
    """Cloud server C with its public data and its edge servers."""

    def __init__(
        self,
        settings: Fleet,
        public: Splits,
        class_names: list[str],
        preprocessing: dict[str, Any],
        edges: Link,
        folder: Path,
        journal: Journal,
        reference: Classifier,
    ) -> None:
        """``reference`` is θ0 before any training, see ``untrained_reference``; it is trained."""
        self._settings = settings
        self._task = task_of(settings.task)
        self._distillation = settings.backbone.distillation
        self._public = public
        self._class_names = class_names
        self._preprocessing = preprocessing
        quorum, tell = settings.edge_quorum, partial(journal.fault, "cloud", "cloud")
        self._edges = RollCall("cloud", "edge servers", edges, _DAY_S, quorum, folder, tell)
        self._folder = folder
        self._journal = journal
        self._accelerator = training_device(settings.accelerator, "accelerator")
        self._initial = reference
        self._reference_origin: Origin = "trained"  # until it is prepared
        self._teacher: ElasticClassifier | None = None  # where features are learned
        self.grid = candidate_grid(settings.backbone, self._initial)
        self.left_out: list[str] = []
        """Candidates without a finite loss, in words."""
        self._parts: dict[str, list[Part]] = {}
        padding, flip = settings.reference.crop_padding, settings.reference.flip
        self._augment = augmentation(padding, flip=flip)

    # --- Algorithm 1, lines 2-4 ---

    def prepare(self) -> tuple[ReferenceResult, ElasticClassifier]:
        """Train θ0, order it by importance, make it elastic by distillation."""
        start = self._untouched()
        before = clone_state(start)  # stages train what they get
        with diverging("training the reference", "reference.training.learning_rate"):
            reference = self._staged("reference", start, self._train_reference)
        self._reference_origin = origin_of(self._settings.reference, before, reference)
        result = described(self._task, reference, self._public.test, self._reference_origin)
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
        if settings.checkpoint is None or not self._public.labelled:
            return model
        path = self._folder / "probe.safetensors"
        stored = if_sound(path, read_tensors)
        if stored is None:
            with self._journal.stage("cloud", "probe", "cloud"):
                known = known_pooling(settings, model.backbone.config.hidden_size)
                pooling, head = public_probe(self._task, model, self._public, known)
            stored = head, {"pooling": pooling}
            write_tensors(path, *stored)
        head, about = stored
        model.backbone.config.pooling = about["pooling"]
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
            with self._journal.stage("cloud", name, "cloud") as progress:
                after = work(before.to(self._accelerator), progress).cpu()
            before.cpu()
            write_tensors(path, after.state_dict(), {})
            stored = read_tensors(path)
        self._epochs(name).remove()
        model = ElasticClassifier(before).frozen_copy().classifier
        model.load_state_dict(stored[0])
        return model.requires_grad_(True)

    def _epochs(self, name: str) -> EpochState:
        """The saved state of an unfinished stage."""
        return EpochState(self._folder / f"{name}-epochs.safetensors")

    def _train_reference(self, model: Classifier, progress: Progress) -> Classifier:
        settings, draw = self._settings.reference, self._draw("reference training")
        public, augment = self._public, self._augment
        return train_reference(self._task, model, settings, public, draw, augment, progress)

    def _reorder(self, model: Classifier, progress: Progress) -> Classifier:
        settings = self._settings.backbone
        samples = self._public.train[: settings.importance_samples]
        draw, labelled = self._draw("importance"), samples.labelled
        objective = objective_of(self._task, settings.importance, draw, labelled=labelled)
        heads, neurons = taylor_importance(model, samples, objective)
        if not all(bool(values.isfinite().all()) for values in (heads, neurons)):
            raise FleetError(
                "the importance of heads and neurons is no finite number: the reference's loss is "
                "too large; set a lower reference.training.learning_rate and start anew"
            )
        model.cpu()
        importance = Importance.sorted(heads, neurons)
        named = {"heads": importance.heads, "neurons": importance.neurons}
        write_tensors(self._folder / _IMPORTANCE, named, {})
        return Classifier(reorder(model.backbone, heads, neurons), model.head)

    def _distill_width(self, model: Classifier, progress: Progress) -> Classifier:
        """First step of Eq. 9: teacher θ0, students of all widths at full depth."""
        layers = [dimensions(model.backbone.config).layers]
        lesson = self._lesson()
        step = step_of(self._distillation, 0, self._widths(), layers, lambda width: 1.0, lesson)
        draw, training = self._draw("distillation", 0), self._distillation.training
        return self._distill(model, _STEPS[0], step, training, draw, progress)

    def _distill_depth(self, model: Classifier, progress: Progress) -> Classifier:
        """Second step of Eq. 9: teacher of the same width at full depth."""
        depths = sorted({*self._settings.backbone.depths})
        lesson = self._lesson()
        step = step_of(self._distillation, 1, self._widths(), depths, lambda width: width, lesson)
        draw, training = self._draw("distillation", 1), self._distillation.training
        return self._distill(model, _STEPS[1], step, training, draw, progress)

    def _lesson(self) -> Lesson:
        return lesson_of(self._distillation, self._reference_origin)

    def _widths(self) -> list[float]:
        """All that students are trained at; the whole too, unless it stays the reference."""
        own = self._lesson().match == "states"
        return sorted({*self._settings.backbone.widths, *([1.0] if own else [])})

    def recovered(self, elastic: ElasticClassifier, width: float, depth: int) -> ElasticClassifier:
        """The chosen sub-network distilled alone, from the whole model; beyond the paper."""
        training, whole = self._distillation.recovery, (1.0, elastic.sizes.layers)
        if (width, depth) == whole:
            return self._whole(elastic)  # it has nobody to learn from
        if training is None:
            return elastic
        name = f"recovered-{width:g}-{depth}"

        def work(model: Classifier, progress: Progress) -> Classifier:
            step = recovery_of(self._distillation, width, depth, self._lesson())
            draw = self._draw("recovery", name)
            return self._distill(model, name, step, training, draw, progress)

        alone = elastic.frozen_copy().classifier.requires_grad_(True)
        with diverging(name, "backbone.distillation.recovery.learning_rate"):
            return self._elastic(self._staged(name, alone, work))

    def _whole(self, elastic: ElasticClassifier) -> ElasticClassifier:
        """The whole model; of a checkpoint the reference, whose weights were never shared."""
        return self._teacher or elastic

    def _draw(self, *purpose: str | int) -> torch.Generator:
        return generator(self._settings.seed, *purpose)

    def _distill(
        self,
        model: Classifier,
        name: str,
        step: DistillationStep,
        training: Training,
        draw: torch.Generator,
        progress: Progress,
    ) -> Classifier:
        student = self._elastic(model)
        teacher = self._teacher  # the reference itself, whatever the student's width
        if teacher is None:
            teacher = student.frozen_copy()
        elif min(step.widths) == 1.0 and len(step.depths) == 1:
            return model  # the whole model would learn from itself
        else:
            teacher.classifier.to(self._accelerator)
        distill(
            self._task,
            teacher,
            student,
            step,
            self._public.train,
            training,
            draw,
            augment=self._augment,
            on_epoch=progress,
            state=self._epochs(name),
        )
        return model

    # --- lines 5-18 ---

    def match(self, elastic: ElasticClassifier) -> list[ClusterChoice]:
        """Ask every edge for its cluster's statistics and choose backbones for it (Eq. 10-13).

        An edge server whose profile does not fit the fleet is lost.

        Raises:
            FleetError: if no candidate has a finite loss, or none fits a cluster.
            QuorumError: if too few edges answer.
        """
        quality = self._quality(elastic)
        self.left_out = without_loss(self.grid, quality, self._settings)
        candidates = Candidates(
            grid=self.grid,
            quality=quality,
            sizes=candidate_sizes(elastic, self.grid, self._settings.header),
            tokens=patches(self._initial.backbone.config, self._public.train.inputs),
        )

        def check(edge: str, profile: ClusterProfile) -> None:
            check_profile(self._settings, edge, profile)

        profiles = self._edges.ask(ProfileRequest(), ClusterProfile, self._edges.members(), check)
        self._parts = {edge: profile.parts for edge, profile in profiles.items()}
        return choose_for(candidates, self._parts, self._settings.selection)

    def _quality(self, elastic: ElasticClassifier) -> Quality:
        path = self._folder / "candidates.json"
        stored = if_sound(path, lambda path: read_sealed_json(path, _StoredQuality))
        if stored is None:
            with self._journal.stage("cloud", "candidate losses", "cloud") as progress:
                elastic.classifier.to(self._accelerator)
                whole, validation = self._whole(elastic), self._public.validation
                found = sent_quality(self._task, elastic, whole, self.grid, validation, progress)
                elastic.classifier.cpu()
            accuracies = None if found.scores is None else found.scores.tolist()
            stored = _StoredQuality(found.losses.tolist(), accuracies)
            write_sealed_json(path, vars(stored))
        accuracies = None if stored.accuracies is None else np.array(stored.accuracies)
        return Quality(np.array(stored.losses), accuracies)

    # --- line 19: backbones down, reports up ---

    def distribute(
        self, elastic: ElasticClassifier, choices: list[ClusterChoice]
    ) -> list[tuple[ClusterChoice, ClusterReport]]:
        """Cut each choice's backbone, send it, and wait for the edges' reports.

        Edge servers work side by side; one that has several groups of devices does one at a time.

        Raises:
            QuorumError: if too few edges finish; what was finished is on disk.
        """
        queues: defaultdict[str, list[ClusterChoice]] = defaultdict(list)
        for choice in choices:
            queues[choice.edge].append(choice)
        finished = []
        for turn in itertools.zip_longest(*queues.values()):
            asked = {c.edge: c for c in turn if c and c.edge not in self.lost}
            requests = {edge: self._assignment(elastic, choice) for edge, choice in asked.items()}

            def check(
                edge: str, report: ClusterReport, asked: dict[str, ClusterChoice] = asked
            ) -> None:
                chosen = asked[edge]
                sent = Assigned(edge, self._parts[edge], chosen.parts, chosen.storage_bytes)
                check_finished(self._settings, self._initial, sent, report)

            reports = self._edges.gather(requests, ClusterReport, check)
            finished += [(asked[edge], report) for edge, report in reports.items()]
        everyone = self._edges.members()
        self._edges.require(len(everyone) - len(self.lost), len(everyone))
        return sorted(finished, key=lambda pair: choices.index(pair[0]))

    @property
    def lost(self) -> dict[str, str]:
        """Edge servers that have failed, and why."""
        return self._edges.lost

    def _assignment(self, elastic: ElasticClassifier, choice: ClusterChoice) -> BackboneAssignment:
        width = float(self.grid.widths[choice.selection.chosen])
        depth = int(self.grid.depths[choice.selection.chosen])
        elastic = self.recovered(elastic, width, depth)
        backbone = elastic.extract(elastic.shape(width, depth))
        return BackboneAssignment(
            parts=choice.parts,
            width=width,
            depth=depth,
            config=config_document(backbone),
            backbone=clone_state(backbone),
            classifier=clone_state(elastic.classifier.head),
            class_names=self._class_names,
            preprocessing=self._preprocessing,
        )


def read_importance(path: Path) -> Importance:
    """The importance of heads and neurons by which the reference was reordered.

    Raises:
        DamagedError: if the file is damaged.
    """
    tensors, _ = read_tensors(path)
    return Importance(tensors["heads"], tensors["neurons"])
