"""The cloud server's role, Algorithm 1: an elastic backbone, and the right part for each edge."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.cloud.backbones import Backbones
from acme_fleet.cloud.choices import Candidates, ClusterChoice, choose_for, shapes_to_try
from acme_fleet.cloud.crew import UNAIDED, Crew
from acme_fleet.cloud.first_pass import costs_of
from acme_fleet.cloud.objectives import Quality, candidate_grid, candidate_sizes, without_loss
from acme_fleet.cloud.replies import Assigned, check_finished, check_profile
from acme_fleet.cloud.stored import read_kept
from acme_fleet.config.devices import Part
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Splits
from acme_fleet.distillation.reference import ReferenceResult
from acme_fleet.links.base import Link
from acme_fleet.links.roll_call import RollCall
from acme_fleet.messages.cloud_edge import (
    BackboneAssignment,
    ClusterProfile,
    ClusterReport,
    TakeoverReport,
    TakeoverRequest,
)
from acme_fleet.messages.edge_device import ProfileRequest
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier, patches
from acme_fleet.models.storage import clone_state, sent_backbone
from acme_fleet.runs.journal import Journal

_DAY_S = 86_400.0


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
        crew: Crew = UNAIDED,
    ) -> None:
        """See :class:`~acme_fleet.cloud.backbones.Backbones` for ``reference`` and ``crew``."""
        self._settings = settings
        self._public = public
        self._class_names = class_names
        self._preprocessing = preprocessing
        quorum, tell = settings.edge_quorum, partial(journal.fault, "cloud", "cloud")
        self._edges = RollCall("cloud", "edge servers", edges, _DAY_S, quorum, folder, tell)
        self._initial = reference
        self._folder = folder
        stage = partial(journal.stage, "cloud", tier="cloud")
        self.backbones = Backbones(settings, public, class_names, folder, stage, reference, crew)
        """What is made of the reference, lines 2-4."""
        self.grid = candidate_grid(settings.backbone, self._initial)
        self.left_out: list[str] = []
        """Candidates without a finite loss, in words."""
        self._parts: dict[str, list[Part]] = {}

    def prepare(self) -> tuple[ReferenceResult, ElasticClassifier]:
        """Train θ0, order it by importance, make it elastic by distillation (lines 2-4)."""
        return self.backbones.prepare()

    # --- lines 5-18 ---

    def match(self, elastic: ElasticClassifier) -> list[ClusterChoice]:
        """Ask every edge for its cluster's statistics and choose backbones for it (Eq. 10-13).

        An edge server whose profile does not fit the fleet is lost.

        Raises:
            FleetError: if no candidate has a finite loss, or none fits a cluster.
            QuorumError: if too few edges answer.
        """
        sizes = candidate_sizes(elastic, self.grid, self._settings.header)
        costs = costs_of(self.grid, sizes, self._settings)
        quality = self.backbones.quality(elastic, self.grid, costs)
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
        settings = self._settings.selection
        if self.backbones.trial_epochs:
            candidates = self._tried(elastic, candidates)
        return choose_for(candidates, self._parts, settings, read_kept(self._folder))

    def _tried(self, elastic: ElasticClassifier, candidates: Candidates) -> Candidates:
        """Recover every part's finalists for a while, and judge them again (METHOD 13)."""
        losses, scores = np.full(len(self.grid), np.nan), np.full(len(self.grid), np.nan)
        for shape, rows in shapes_to_try(candidates, self._parts, self._settings.selection).items():
            if shape == elastic.whole:  # has nobody to learn from
                found, at = candidates.quality, rows
            else:
                variants = [self.grid.variants[row] for row in rows]
                found, at = self.backbones.quality_tried(elastic, variants), np.arange(len(rows))
            losses[rows] = found.losses[at]
            if found.scores is not None:
                scores[rows] = found.scores[at]
        labelled = candidates.quality.scores is not None
        return replace(candidates, recovered=Quality(losses, scores if labelled else None))

    # --- an update: what an earlier run has finished ---

    @property
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """By cluster, what its edge server has told of its devices."""
        return self._parts

    def variant(self, choice: ClusterChoice) -> Variant:
        """The backbone that was chosen."""
        return self.grid.variants[choice.selection.chosen]

    def take_over(self, requests: Mapping[str, TakeoverRequest]) -> dict[str, str]:
        """Have edge servers begin with an earlier run's part; who cannot, and why."""
        reports = self._edges.gather(requests, TakeoverReport)
        refused = {n: why for report in reports.values() for n, why in report.refused.items()}
        return self.lost | refused

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
                hidden = elastic.shape(self.variant(chosen)).hidden
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
        variant = self.variant(choice)
        elastic = self.backbones.recovered(elastic, variant)
        backbone = elastic.extract(elastic.shape(variant))
        return BackboneAssignment(
            parts=choice.parts,
            **vars(variant),
            **sent_backbone(backbone),
            classifier=clone_state(self.backbones.head_of(elastic, variant)),
            class_names=self._class_names,
            preprocessing=self._preprocessing,
        )
