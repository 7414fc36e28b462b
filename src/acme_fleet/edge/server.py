"""The edge server's role: search a header (phase 2-1), then Algorithm 2 with its devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet import fleet
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.data.samples import Samples, join
from acme_fleet.edge.aggregation import present
from acme_fleet.edge.rounds import header_shapes, mix_round
from acme_fleet.edge.search import search_header, split_shared_data
from acme_fleet.edge.search_space import SearchSpace
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
from acme_fleet.models.families import family_of
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header import LinearHeader
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
from acme_fleet.models.training import fit
from acme_fleet.seeding import generator

Reply = TypeVar("Reply", bound=Message)


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
            reports=list(reports.values()),
            lost=self._lost,
        )

    def _coarse_model(self, assignment: BackboneAssignment) -> HeaderAssignment:
        """Search and fine-tune the coarse header, or read what an earlier start left on disk."""
        path = self._folder / "coarse.safetensors"
        if not path.exists():
            backbone = backbone_from(assignment.config, assignment.backbone)
            with self._journal.stage(self._name, "header search") as progress:
                tensors, about = self._search(backbone, assignment.classifier, progress)
            write_tensors(path, with_prefix("backbone", clone_state(backbone)) | tensors, about)
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

    def _search(
        self,
        backbone: PreTrainedModel,
        classifier: Mapping[str, Tensor],
        progress: Callable[[int, int], None],
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Search, then fine-tune what was found, beside a linear header on the same data."""
        random = generator(self._settings.seed, self._name, "search")
        data = split_shared_data(self._shared, random)
        space = self._search_space(backbone, classifier)
        fits = self._size_check(backbone)
        result = search_header(
            backbone, classifier, space, fits, data, self._settings.search, random, progress
        )
        known = feature_samples(backbone, join([data.weights, data.reward]))
        choice = feature_samples(backbone, data.choice)
        linear = LinearHeader(classifier)
        for module in (result.header, linear):
            fit(module, known, self._settings.search.fine_tuning, random, validation=choice)
        tensors = with_prefix("header", clone_state(result.header))
        tensors |= with_prefix("linear", clone_state(linear.linear))
        about = {"plan": result.plan.model_dump(mode="json"), "rewards": result.rewards}
        return tensors, about

    def _search_space(
        self, backbone: PreTrainedModel, classifier: Mapping[str, Tensor]
    ) -> SearchSpace:
        classes, hidden = classifier["weight"].shape
        return SearchSpace(
            blocks=self._settings.header.blocks,
            cells=self._settings.header.cells,
            channels=self._settings.header.channels,
            hidden=hidden,
            classes=classes,
            axes=2 if family_of(backbone.config).grid == "image" else 1,
        )

    def _size_check(self, backbone: PreTrainedModel) -> Callable[[HeaderPlan], bool]:
        """Whether backbone and header together fit the cluster's smallest device."""
        limit = self._limit or self._profile().storage_bytes
        backbone_shapes = shapes_of(backbone, "backbone.")

        def fits(plan: HeaderPlan) -> bool:
            header_shapes = {f"header.{name}": shape for name, shape in plan.shapes().items()}
            return file_size(backbone_shapes | header_shapes) <= limit

        return fits

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
