"""The edge server's role: search a header (phase 2-1), then Algorithm 2 with its devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from acme_fleet import fleet
from acme_fleet.cost.size import parameter_count
from acme_fleet.data.samples import Samples
from acme_fleet.edge.aggregation import present
from acme_fleet.edge.comparison import Contender, Task
from acme_fleet.edge.memory import Rounds, recall, remember
from acme_fleet.edge.parts import Group, kinds, whole
from acme_fleet.edge.rounds import header_shapes, mix_round, shortened
from acme_fleet.edge.search import split_shared_data
from acme_fleet.edge.similarity import debias, distance_matrix, mixing_weights
from acme_fleet.errors import ProtocolError
from acme_fleet.hardware import Part
from acme_fleet.journal import Journal
from acme_fleet.links.base import Link
from acme_fleet.links.roll_call import RollCall
from acme_fleet.messages import (
    BackboneAssignment,
    ClusterProfile,
    ClusterReport,
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    HeaderAssignment,
    HeaderContender,
    ImportanceUpdate,
    ImportanceUpload,
    Message,
    ProfileRequest,
    ReportRequest,
    RoundReport,
    RoundStart,
    check_features,
    check_importance,
    check_shapes,
)
from acme_fleet.models.header_plan import HeaderPlan
from acme_fleet.models.io import (
    backbone_from,
    clone_state,
    read_document,
    read_tensors,
    with_prefix,
    without_prefix,
    write_json,
    write_tensors,
)
from acme_fleet.seeding import generator

_COARSE = "coarse.safetensors"


class EdgeServer:
    """Edge server s with its shared data and its devices N_s."""

    def __init__(
        self,
        name: str,
        settings: fleet.Fleet,
        shared: Samples,
        devices: Link,
        folder: Path,
        journal: Journal,
    ) -> None:
        self._name = name
        self._settings = settings
        self._personalization = settings.personalization
        self._shared = shared
        self._folder = folder
        self._journal = journal
        self._devices = RollCall(
            name,
            "devices",
            devices,
            settings.personalization.timeout_s,
            settings.personalization.quorum,
            folder,
        )
        folder.mkdir(parents=True, exist_ok=True)

    def handle(self, message: Message) -> Message:
        """Answer the cloud server.

        Raises:
            ProtocolError: if the message is not one that an edge server answers.
            QuorumError: if too few devices answer.
        """
        match message:
            case ProfileRequest():
                parts = [part for part, _ in self._parts()]
                return ClusterProfile(name=self._name, parts=parts)
            case BackboneAssignment():
                return self._customize(message, self._group(message))
        raise ProtocolError(f"an edge server does not answer {type(message).__name__}")

    # --- phase 1: statistics up ---

    def _parts(self) -> list[tuple[Part, list[str]]]:
        """What backbones are chosen for, and whose they are; asked once, so that it stays."""
        path = self._folder / "parts.json"
        if not path.exists():
            everyone = self._devices.members()
            profiles = self._devices.ask(ProfileRequest(), DeviceProfile, everyone)
            limits = {name: (told.storage_bytes, told.energy) for name, told in profiles.items()}
            per_device = self._settings.selection.matching == "device"
            found = kinds(limits) if per_device else [(whole(limits.values()), everyone)]
            stored = [{"part": p.model_dump(mode="json"), "members": names} for p, names in found]
            write_json(path, stored)
        stored = read_document(self._folder, path.name)
        return [(Part.model_validate(told["part"]), told["members"]) for told in stored]

    def _group(self, assignment: BackboneAssignment) -> Group:
        """Those for whom a backbone was sent."""
        parts = self._parts()
        if unknown := [number for number in assignment.parts if number >= len(parts)]:
            raise ProtocolError(f"{self._name} has {len(parts)} parts and no number {unknown[0]}")
        chosen = [parts[number] for number in assignment.parts]
        several, number = len(chosen) < len(parts), 1 + min(assignment.parts)
        known = {name for _, names in parts for name in names}
        return Group(
            name=f"{self._name}:{number}" if several else self._name,
            members=[name for _, names in chosen for name in names],
            strangers=[n for n in self._devices.members() if number == 1 and n not in known],
            limit=min(part.storage_bytes for part, _ in chosen),
            folder=self._folder / f"group-{number}" if several else self._folder,
        )

    def _customize(self, assignment: BackboneAssignment, group: Group) -> ClusterReport:
        group.folder.mkdir(exist_ok=True)
        coarse = self._coarse_model(assignment, group)
        plan = HeaderPlan.model_validate(coarse.plan)
        weights, names = self._similarity(coarse, group)
        told = Rounds.read(group.folder)
        while told.done < self._personalization.rounds:
            told = self._round(told, coarse, weights, names, group)
            told.write(group.folder)
        reports = self._devices.ask(ReportRequest(), DeviceReport, group.members, _check_report)
        lost = dict.fromkeys(group.strangers, "it never told its limits")
        own = {*group.members, *group.strangers}
        lost |= {name: why for name, why in self._devices.lost.items() if name in own}
        return ClusterReport(
            name=group.name,
            genotype=plan.genotype.model_dump(mode="json"),
            header=plan.genotype.describe(),
            device_names=names,
            similarity=weights.tolist(),
            contenders=self._contenders(assignment, coarse, group),
            reports=list(reports.values()),
            lost=lost,
            missed=told.missed,
            shortened=told.shortened,
        )

    def _coarse_model(self, assignment: BackboneAssignment, group: Group) -> HeaderAssignment:
        """Search and fine-tune the coarse header, or read what an earlier start left on disk."""
        path = group.folder / _COARSE
        if not path.exists():
            backbone = backbone_from(assignment.config, assignment.backbone)
            unfinished = group.folder / "search.safetensors"
            with self._journal.stage(group.name, "header search") as progress:
                tensors, about = self._task(assignment, group).coarse(
                    backbone, _generators(self._settings.seed, group), progress, unfinished
                )
            write_tensors(path, with_prefix("backbone", clone_state(backbone)) | tensors, about)
            unfinished.unlink(missing_ok=True)
        tensors, about = read_tensors(path)
        return HeaderAssignment(
            config=assignment.config,
            backbone=without_prefix("backbone", tensors),
            plan=about["plan"],
            header=without_prefix("header", tensors),
            linear=without_prefix("linear", tensors),
            class_names=assignment.class_names,
            preprocessing=assignment.preprocessing,
        )

    def _contenders(
        self, assignment: BackboneAssignment, coarse: HeaderAssignment, group: Group
    ) -> list[HeaderContender]:
        """How the searched header fared on the edge's own data, then its rivals."""
        path = group.folder / "contenders.json"
        if not path.exists():
            _, about = read_tensors(group.folder / _COARSE)
            rivals: list[Contender] = []
            if self._settings.search.rivals:
                with self._journal.stage(group.name, "header rivals") as progress:
                    rivals = self._task(assignment, group).rivals(
                        lambda: backbone_from(assignment.config, assignment.backbone),
                        backbone_from(coarse.config, coarse.backbone),
                        parameter_count(HeaderPlan.model_validate(coarse.plan).shapes()),
                        _generators(self._settings.seed, group),
                        progress,
                    )
            write_json(path, about["contenders"] + [asdict(rival) for rival in rivals])
        stored = read_document(group.folder, path.name)
        return [HeaderContender(**told.pop("choice"), **told) for told in stored]

    def _task(self, assignment: BackboneAssignment, group: Group) -> Task:
        """What every contender gets."""
        return Task.of(
            backbone_from(assignment.config, assignment.backbone),
            assignment.classifier,
            self._settings.header,
            self._settings.search,
            split_shared_data(self._shared, _generators(self._settings.seed, group)("split")),
            group.limit,
        )

    def _similarity(self, coarse: HeaderAssignment, group: Group) -> tuple[np.ndarray, list[str]]:
        """Send the coarse model, gather feature samples, decide who listens to whom (Eq. 19-20)."""
        path = group.folder / "similarity.json"
        if not path.exists():
            most = self._personalization.feature_samples
            hidden = HeaderPlan.model_validate(coarse.plan).hidden
            width = self._personalization.privacy.sketch_dim or hidden

            def check(name: str, reply: FeatureSample) -> None:
                check_features(reply.features, most, width, f"the feature sample of {name}")

            replies = self._devices.ask(coarse, FeatureSample, group.members, check)
            samples = {name: reply.rows().numpy() for name, reply in replies.items()}
            with self._journal.stage(group.name, "similarity"):
                distances = distance_matrix(list(samples.values()))
                if self._personalization.similarity == "debiased":
                    distances = debias(distances, list(samples.values()))
                weights = mixing_weights(distances, self._personalization.temperature)
            write_json(path, {"devices": list(samples), "weights": weights.tolist()})
        stored = read_document(group.folder, path.name)
        return np.array(stored["weights"]), stored["devices"]

    def _round(
        self,
        told: Rounds,
        coarse: HeaderAssignment,
        weights: np.ndarray,
        names: list[str],
        group: Group,
    ) -> Rounds:
        """One round of Algorithm 2; the last one if no device's header changes any more."""
        number, folder = told.done, group.folder / "uploads"
        plan, mix = HeaderPlan.model_validate(coarse.plan), self._personalization.mix
        channels = dict.fromkeys(plan.layers, plan.genotype.channels)

        def check(name: str, upload: ImportanceUpload) -> None:
            check_importance(upload.importance, channels, f"the importance of {name}")
            shapes = header_shapes(name, upload.kept, plan, mix)
            check_shapes(upload.header, shapes, f"the header of {name}")

        uploads = self._devices.ask(RoundStart(round=number), ImportanceUpload, names, check)
        remember(folder, number, uploads)
        known = recall(folder, number, names, self._personalization.stale_decay)
        fresh = [sent.freshness for sent in known.values()]
        among = present(weights, [names.index(name) for name in known], fresh)
        mixed = mix_round(known, plan, coarse.header, among, mix)
        updates = {
            name: ImportanceUpdate(round=number, importance=mixed[name][0], header=mixed[name][1])
            for name in uploads
        }
        reports = self._devices.call(updates, RoundReport)
        return told.after(
            absent=[name for name in names if name not in uploads],
            shortened=shortened(known, plan, coarse.header, mix),
            last=not any(report.changed for report in reports.values()),
            rounds=self._personalization.rounds,
        )


def _check_report(name: str, report: DeviceReport) -> None:
    if report.name != name:
        raise ProtocolError(f"the report of {name} bears the name {report.name}")


def _generators(seed: int, group: Group) -> Callable[[str], torch.Generator]:
    return lambda purpose: generator(seed, group.name, "header", purpose)
