"""The cloud server's role, Algorithm 1: an elastic backbone, and the right part for each edge."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acme_fleet.cloud.choices import Candidates, ClusterChoice, choose_for
from acme_fleet.cloud.first_pass import Costs, costs_of, judged
from acme_fleet.cloud.objectives import (
    Quality,
    candidate_grid,
    candidate_sizes,
    sent_quality,
    without_loss,
)
from acme_fleet.cloud.replies import Assigned, check_finished, check_profile
from acme_fleet.cloud.stored import read_importance, read_quality, write_quality
from acme_fleet.config.devices import Part
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import (
    DistillationStep,
    Lesson,
    Origin,
    distill,
    lesson_of,
    recovery_of,
    step_of,
)
from acme_fleet.distillation.importance import objective_of, taylor_importance
from acme_fleet.distillation.maps import mapped_heads
from acme_fleet.distillation.reference import (
    ReferenceResult,
    described,
    known_pooling,
    origin_of,
    public_probe,
    train_reference,
)
from acme_fleet.errors import FleetError
from acme_fleet.links.base import Link
from acme_fleet.links.roll_call import RollCall
from acme_fleet.messages.cloud_edge import BackboneAssignment, ClusterProfile, ClusterReport
from acme_fleet.messages.edge_device import ProfileRequest
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier, patches
from acme_fleet.models.storage import clone_state, read_tensors, sent_backbone, write_tensors
from acme_fleet.runs.journal import Journal, Progress
from acme_fleet.runs.sealed import if_sound
from acme_fleet.seeding import generator
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.augmentation import augmentation
from acme_fleet.training.loop import diverging
from acme_fleet.training.precision import training_device
from acme_fleet.training.resume import EpochState

_DAY_S = 86_400.0
_MAPPED = 1024  # public training samples that maps between features are fitted on
_STEPS = ("width-elastic", "elastic")  # what the two steps of Eq. 9 make
_REORDERED, _IMPORTANCE = "reordered", "importance.safetensors"


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
        found = taylor_importance(model, samples, objective)
        if not all(bool(values.isfinite().all()) for values in found):
            raise FleetError(
                "the importance of heads, neurons and channels is no finite number: the "
                "reference's loss is too large; set a lower reference.training.learning_rate and "
                "start anew"
            )
        model.cpu()
        importance = Importance.sorted(found.heads, found.neurons)
        named = {"heads": importance.heads, "neurons": importance.neurons}
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
        step = step_of(self._distillation, number, widths, depths, lesson, hidden)
        draw, training = self._draw("distillation", number), self._distillation.training
        return self._distill(model, _STEPS[number], step, training, draw, progress)

    def _lesson(self) -> Lesson:
        return lesson_of(self._distillation, self._reference_origin)

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

    def recovered(self, elastic: ElasticClassifier, variant: Variant) -> ElasticClassifier:
        """The chosen sub-network distilled alone, from the whole model; beyond the paper."""
        training, variant = self._distillation.recovery, variant.trained
        if variant == elastic.whole:
            return self._whole(elastic)  # it has nobody to learn from
        if training is None:
            return elastic
        name = f"recovered-{variant.name}"

        def work(model: Classifier, progress: Progress) -> Classifier:
            step = recovery_of(self._distillation, variant, self._lesson())
            draw = self._draw("recovery", name)
            return self._distill(model, name, step, training, draw, progress)

        alone = elastic.frozen_copy().classifier.requires_grad_(True)
        with diverging(name, "backbone.distillation.recovery.learning_rate"):
            return self._elastic(self._staged(name, alone, work))

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
        elif min(*step.widths, *step.hidden) == 1.0 and len(step.depths) == 1:
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
        sizes = candidate_sizes(elastic, self.grid, self._settings.header)
        quality = self._quality(elastic, costs_of(self.grid, sizes, self._settings))
        self.left_out = without_loss(self.grid, quality, self._settings)
        candidates = Candidates(
            grid=self.grid,
            quality=quality,
            sizes=sizes,
            tokens=patches(self._initial.backbone.config, self._public.train.inputs),
        )

        def check(edge: str, profile: ClusterProfile) -> None:
            check_profile(self._settings, edge, profile)

        profiles = self._edges.ask(ProfileRequest(), ClusterProfile, self._edges.members(), check)
        self._parts = {edge: profile.parts for edge, profile in profiles.items()}
        return choose_for(candidates, self._parts, self._settings.selection)

    def _quality(self, elastic: ElasticClassifier, costs: Costs) -> Quality:
        path = self._folder / "candidates.json"
        if if_sound(path, read_quality) is None:
            with self._journal.stage("cloud", "candidate losses", "cloud") as progress:
                elastic.classifier.to(self._accelerator)
                models, known = (self._task, elastic, self._whole(elastic)), self._mapped()
                judge = partial(sent_quality, *models, progress=progress, known=known)
                few, draw = self._settings.backbone.first_pass, self._draw("first pass")
                found = judged(judge, self.grid, self._public.validation, costs, few, draw)
                elastic.classifier.cpu()
            write_quality(path, found)
        return read_quality(path)

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
                hidden = elastic.shape(self.grid.variants[chosen.selection.chosen]).hidden
                limits = chosen.storage_bytes, hidden
                sent = Assigned(edge, self._parts[edge], chosen.parts, *limits)
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
        variant = self.grid.variants[choice.selection.chosen]
        elastic = self.recovered(elastic, variant)
        backbone = elastic.extract(elastic.shape(variant))
        return BackboneAssignment(
            parts=choice.parts,
            **vars(variant),
            **sent_backbone(backbone),
            classifier=clone_state(self.head_of(elastic, variant)),
            class_names=self._class_names,
            preprocessing=self._preprocessing,
        )
