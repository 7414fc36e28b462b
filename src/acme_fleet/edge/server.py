"""The edge server's role: search a header (phase 2-1), then Algorithm 2 with its devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from acme_fleet import fleet
from acme_fleet.cost.size import parameter_count
from acme_fleet.data.samples import Samples
from acme_fleet.edge.aggregation import present
from acme_fleet.edge.comparison import Contender, Task
from acme_fleet.edge.rounds import header_shapes, mix_round
from acme_fleet.edge.search import split_shared_data
from acme_fleet.edge.similarity import debias, distance_matrix, mixing_weights
from acme_fleet.errors import ProtocolError, QuorumError
from acme_fleet.journal import Journal
from acme_fleet.links.base import Failure, Link
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

Reply = TypeVar("Reply", bound=Message)

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
        self._devices = devices
        self._folder = folder
        self._journal = journal
        self._limit: int | None = None
        self._lost: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def handle(self, message: Message) -> Message:
        """Answer the cloud server.

        Raises:
            ProtocolError: if the message is not one that an edge server answers.
            QuorumError: if too few devices answer.
        """
        match message:
            case ProfileRequest():
                return self._profile()
            case BackboneAssignment():
                return self._customize(message)
        raise ProtocolError(f"an edge server does not answer {type(message).__name__}")

    # --- phase 1: statistics up ---

    def _profile(self) -> ClusterProfile:
        profiles = self._ask(ProfileRequest(), DeviceProfile)
        self._limit = min(profile.storage_bytes for profile in profiles.values())
        return ClusterProfile(
            name=self._name,
            storage_bytes=self._limit,
            energies=list(dict.fromkeys(profile.energy for profile in profiles.values())),
            devices=len(profiles),
        )

    def _customize(self, assignment: BackboneAssignment) -> ClusterReport:
        coarse = self._coarse_model(assignment)
        plan = HeaderPlan.model_validate(coarse.plan)
        weights, names = self._similarity(coarse)
        for number in range(self._rounds_done(), self._personalization.rounds):
            changed = self._round(number, coarse, weights, names)
            done = number + 1 if changed else self._personalization.rounds
            write_json(self._folder / "rounds.json", {"done": done})
            if not changed:
                break
        reports = self._ask(ReportRequest(), DeviceReport, check=_check_report)
        return ClusterReport(
            name=self._name,
            genotype=plan.genotype.model_dump(mode="json"),
            header=plan.genotype.describe(),
            device_names=names,
            similarity=weights.tolist(),
            contenders=self._contenders(assignment, coarse),
            reports=list(reports.values()),
            lost=self._lost,
        )

    def _coarse_model(self, assignment: BackboneAssignment) -> HeaderAssignment:
        """Search and fine-tune the coarse header, or read what an earlier start left on disk."""
        path = self._folder / _COARSE
        if not path.exists():
            backbone = backbone_from(assignment.config, assignment.backbone)
            unfinished = self._folder / "search.safetensors"
            with self._journal.stage(self._name, "header search") as progress:
                task = self._task(assignment)
                tensors, about = task.coarse(backbone, self._generator, progress, unfinished)
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
        self, assignment: BackboneAssignment, coarse: HeaderAssignment
    ) -> list[HeaderContender]:
        """How the searched header and its rivals fared on the edge's own data, the former first."""
        path = self._folder / "contenders.json"
        if not path.exists():
            _, about = read_tensors(self._folder / _COARSE)
            rivals = self._rivals(assignment, coarse) if self._settings.search.rivals else []
            write_json(path, about["contenders"] + [asdict(rival) for rival in rivals])
        stored = read_document(self._folder, path.name)
        return [HeaderContender(**told.pop("choice"), **told) for told in stored]

    def _rivals(self, assignment: BackboneAssignment, coarse: HeaderAssignment) -> list[Contender]:
        """The other strategies from the same start, and hand-made headers of the same size."""
        with self._journal.stage(self._name, "header rivals") as progress:
            return self._task(assignment).rivals(
                lambda: backbone_from(assignment.config, assignment.backbone),
                backbone_from(coarse.config, coarse.backbone),
                parameter_count(HeaderPlan.model_validate(coarse.plan).shapes()),
                self._generator,
                progress,
            )

    def _task(self, assignment: BackboneAssignment) -> Task:
        """What every contender gets."""
        return Task.of(
            backbone_from(assignment.config, assignment.backbone),
            assignment.classifier,
            self._settings.header,
            self._settings.search,
            split_shared_data(self._shared, self._generator("split")),
            self._limit or self._profile().storage_bytes,
        )

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(self._settings.seed, self._name, "header", purpose)

    def _similarity(self, coarse: HeaderAssignment) -> tuple[np.ndarray, list[str]]:
        """Send the coarse model, gather feature samples, decide who listens to whom (Eq. 19-20)."""
        path = self._folder / "similarity.json"
        if not path.exists():
            most = self._personalization.feature_samples
            hidden = HeaderPlan.model_validate(coarse.plan).hidden

            def check(name: str, reply: FeatureSample) -> None:
                check_features(reply.features, most, hidden, f"the feature sample of {name}")

            replies = self._ask(coarse, FeatureSample, check=check)
            samples = {name: reply.features.double().numpy() for name, reply in replies.items()}
            with self._journal.stage(self._name, "similarity"):
                distances = distance_matrix(list(samples.values()))
                if self._personalization.similarity == "debiased":
                    distances = debias(distances, list(samples.values()))
                weights = mixing_weights(distances, self._personalization.temperature)
            write_json(path, {"devices": list(samples), "weights": weights.tolist()})
        stored = read_document(self._folder, path.name)
        return np.array(stored["weights"]), stored["devices"]

    def _round(
        self, number: int, coarse: HeaderAssignment, weights: np.ndarray, names: list[str]
    ) -> bool:
        """One round of Algorithm 2; whether any device's header still changed."""
        plan, mix = HeaderPlan.model_validate(coarse.plan), self._personalization.mix
        channels = dict.fromkeys(plan.layers, plan.genotype.channels)

        def check(name: str, upload: ImportanceUpload) -> None:
            check_importance(upload.importance, channels, f"the importance of {name}")
            shapes = header_shapes(name, upload.kept, plan, mix)
            check_shapes(upload.header, shapes, f"the header of {name}")

        uploads = self._ask(RoundStart(round=number), ImportanceUpload, names, check)
        among = present(weights, [names.index(name) for name in uploads])
        mixed = mix_round(uploads, plan, coarse.header, among, mix)
        updates = {
            name: ImportanceUpdate(round=number, importance=importance, header=header)
            for name, (importance, header) in mixed.items()
        }
        reports = self._call(updates, RoundReport)
        return any(report.changed for report in reports.values())

    # --- talking to the devices ---

    def _ask(
        self,
        message: Message,
        reply: type[Reply],
        names: list[str] | None = None,
        check: Callable[[str, Reply], None] | None = None,
    ) -> dict[str, Reply]:
        """Send one message to all devices, or to those named."""
        chosen = self._devices.members() if names is None else names
        return self._call(dict.fromkeys(chosen, message), reply, check)

    def _call(
        self,
        requests: Mapping[str, Message],
        reply: type[Reply],
        check: Callable[[str, Reply], None] | None = None,
    ) -> dict[str, Reply]:
        """Call devices; those who fail are left out and remembered, too few end the run.

        ``check`` raises ProtocolError if a device's reply does not fit, which is a failure too.
        """
        answers = self._devices.call(requests, reply, self._personalization.timeout_s)
        good: dict[str, Reply] = {}
        for name, answer in answers.items():
            if isinstance(answer, Failure):
                self._lost[name] = answer.reason
                continue
            assert isinstance(answer, reply)
            try:
                if check:
                    check(name, answer)
                good[name] = answer
                self._lost.pop(name, None)
            except ProtocolError as error:
                self._lost[name] = str(error)
        self._require_quorum(len(good), len(requests))
        return good

    def _require_quorum(self, present: int, asked: int) -> None:
        needed = math.ceil(self._personalization.quorum * asked)
        if present < needed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self._lost.items())
            raise QuorumError(
                f"{self._name}: {present} of {asked} devices answered, {needed} are needed "
                f"({reasons}); what was finished is in {self._folder}"
            )

    def _rounds_done(self) -> int:
        path = self._folder / "rounds.json"
        return read_document(self._folder, path.name)["done"] if path.exists() else 0


def _check_report(name: str, report: DeviceReport) -> None:
    if report.name != name:
        raise ProtocolError(f"the report of {name} bears the name {report.name}")
