"""The edge server's role: search a header (phase 2-1), then Algorithm 2 with its devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from acme_fleet.config.devices import Part
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.size import parameter_count
from acme_fleet.edge.assigned import Assigned, CoarseModel, Shared
from acme_fleet.edge.comparison import Contender
from acme_fleet.edge.memory import (
    SAMPLES,
    UPLOADS,
    Rounds,
    recall,
    recall_samples,
    remember,
)
from acme_fleet.edge.parts import Group, folder_of, kinds, whole
from acme_fleet.edge.peers import Peers
from acme_fleet.edge.replies import (
    check_profile,
    check_pruned,
    check_round,
    check_sample,
)
from acme_fleet.edge.similarity import who_listens_to_whom
from acme_fleet.edge.stored import COARSE, CONTENDERS, StoredContender, StoredPart, read_coarse
from acme_fleet.edge.takeover import take_over
from acme_fleet.errors import DamagedError, ProtocolError
from acme_fleet.links.base import Link
from acme_fleet.links.device_reports import check_report
from acme_fleet.links.roll_call import RollCall
from acme_fleet.messages.base import Message
from acme_fleet.messages.cloud_edge import (
    BackboneAssignment,
    ClusterProfile,
    ClusterReport,
    TakeoverReport,
    TakeoverRequest,
)
from acme_fleet.messages.edge_device import (
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    HeaderAssignment,
    KeepRequest,
    ProfileRequest,
    ReportRequest,
    RoundReport,
    Update,
    Upload,
)
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.peer_weights import to_lists
from acme_fleet.messages.results import HeaderContender
from acme_fleet.models.storage import (
    stored_weights,
    with_prefix,
    without_prefix,
    write_tensors,
)
from acme_fleet.personalization.rules import rule_of
from acme_fleet.runs.atomic import remove
from acme_fleet.runs.journal import Journal
from acme_fleet.runs.sealed import if_sound, read_sealed_json, write_sealed_json
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.memory import give_back

_PARTS, _LEFT_OUT = "parts.json", "left-out.json"
_SILENT = "it never told its limits"


class EdgeServer:
    """Edge server s with its shared data and its devices N_s.

    Its data are read when a backbone has come, by the preprocessing that came with it.
    """

    def __init__(
        self,
        name: str,
        settings: Fleet,
        shared: Shared,
        devices: Link,
        folder: Path,
        journal: Journal,
        earlier: Callable[[str], Path] | None = None,
    ) -> None:
        """``earlier`` finds this server's folder of an earlier run, by that run's identity."""
        self._name = name
        self._settings = settings
        self._task = task_of(settings.task)
        self._personalization = settings.personalization
        self._rule = rule_of(settings.personalization)
        self._shared = shared
        self._known = {device.name: device for device in settings.devices}
        self._folder = folder
        self._earlier = earlier
        self._journal = journal
        self._devices = RollCall(
            name,
            "devices",
            devices,
            settings.personalization.timeout_s,
            settings.personalization.quorum,
            folder,
            partial(journal.fault, name, "edge"),
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
            case TakeoverRequest() if self._earlier:
                return self._take_over(message, self._earlier(message.run))
            case BackboneAssignment():
                return self._customize(message, self._group(message.parts))
        raise ProtocolError(f"an edge server does not answer {type(message).__name__}")

    # --- phase 1: statistics up ---

    def _parts(self) -> list[tuple[Part, list[str]]]:
        """The parts that backbones are chosen for, with their devices; asked once.

        A device that claims other limits than the fleet file's is left out for good.
        """
        path = self._folder / _PARTS
        stored = if_sound(path, lambda path: read_sealed_json(path, list[StoredPart]))
        if stored is None:
            everyone, refused = self._devices.members(), dict[str, str]()

            def check(name: str, profile: DeviceProfile) -> None:
                refused[name] = "its profile was refused"
                check_profile(self._known[name], profile)
                del refused[name]

            profiles = self._devices.ask(ProfileRequest(), DeviceProfile, everyone, check)
            limits = {
                name: (told.storage_bytes, told.energy, told.precisions)
                for name, told in profiles.items()
            }
            left = [name for name in everyone if name not in refused]
            per_device = self._settings.selection.matching == "device"
            found = kinds(limits) if per_device else [(whole(limits.values()), left)]
            stored = [StoredPart(part=part, members=names) for part, names in found]
            reasons = {name: self._devices.lost[name] for name in refused}
            write_sealed_json(self._folder / _LEFT_OUT, reasons)
            write_sealed_json(path, [each.model_dump(mode="json") for each in stored])
        return [(each.part, each.members) for each in stored]

    def _left_out(self, name: str) -> str:
        """Why a device is in no group."""
        if not (self._folder / _LEFT_OUT).exists():
            return _SILENT
        return read_sealed_json(self._folder / _LEFT_OUT, dict[str, str]).get(name, _SILENT)

    def _group(self, chosen: Sequence[int]) -> Group:
        """The devices of these parts."""
        parts = self._parts()
        if unknown := [number for number in chosen if number >= len(parts)]:
            raise ProtocolError(f"{self._name} has {len(parts)} parts and no number {unknown[0]}")
        if len(set(chosen)) < len(chosen):
            raise ProtocolError(f"{self._name} got a backbone twice for one part")
        return Group.choose(self._name, parts, chosen, self._devices.members(), self._folder)

    # --- an update: what an earlier run has finished ---

    def _take_over(self, request: TakeoverRequest, earlier: Path) -> TakeoverReport:
        """Have the settled devices keep their models, then copy what this server has of theirs.

        Nothing is copied where one of them cannot: the update is then refused.
        """
        groups = [(taken, self._group(taken.parts)) for taken in request.groups]
        refused: dict[str, str] = {}
        for taken, group in groups:
            there = [name for name in taken.settled if name in group.members]
            asked = dict.fromkeys(there, KeepRequest(run=request.run))
            kept = self._devices.gather(asked, DeviceReport)
            lost = self._devices.lost
            refused |= {n: lost.get(n, self._left_out(n)) for n in taken.settled if n not in kept}
        if not refused:
            for taken, group in groups:
                take_over(folder_of(taken.before, earlier), group, taken.settled)
        return TakeoverReport(refused=refused)

    # --- phase 2 ---

    def _customize(self, assignment: BackboneAssignment, group: Group) -> ClusterReport:
        group.folder.mkdir(exist_ok=True)
        coarse = self._coarse_model(self._assigned(assignment, group), group)
        plan = coarse.plan
        told = Rounds.read(group.folder)
        peers = self._similarity(coarse, group, told.settled)
        while told.done < self._personalization.rounds:
            told = self._round(told, coarse, peers, group)
            told.write(group.folder)

        def check(name: str, report: DeviceReport) -> None:
            check_report(self._task, report, self._known[name], plan.neurons)

        reports = self._devices.ask(ReportRequest(), DeviceReport, group.members, check)
        lost = {name: self._left_out(name) for name in group.strangers}
        own = {*group.members, *group.strangers}
        lost |= {name: why for name, why in self._devices.lost.items() if name in own}
        return ClusterReport(
            name=group.name,
            genotype=plan.genotype.model_dump(mode="json"),
            header=plan.genotype.describe(),
            device_names=peers.devices,
            similarity=peers.weights,
            columns=peers.columns,
            contenders=self._contenders(coarse, group),
            reports=list(reports.values()),
            lost=lost,
            missed=told.missed,
            shortened=told.shortened,
        )

    def _assigned(self, assignment: BackboneAssignment, group: Group) -> Assigned:
        draw = group.generators(self._settings.seed)
        return Assigned(assignment, self._settings, self._task, self._shared, draw, group.limit)

    def _coarse_model(self, assigned: Assigned, group: Group) -> CoarseModel:
        """Search and fine-tune the coarse header, or read what an earlier start left on disk."""
        path, assignment = group.folder / COARSE, assigned.message
        stored = if_sound(path, read_coarse)
        if stored is None:
            if path.exists() and self._settings.search.time_limit_s and Peers.read(group.folder):
                raise DamagedError(
                    f"cannot read {path}: it is damaged, devices have the header already, and a "
                    f"search with a time limit would not find the same one"
                )
            assigned.check_classifier()
            backbone = assigned.to_search()
            unfinished = group.folder / "search.safetensors"
            with self._journal.stage(group.name, "header search", "edge") as progress:
                tensors, about = assigned.contest.coarse(
                    backbone, group.generators(self._settings.seed), progress, unfinished
                )
            write_tensors(path, with_prefix("backbone", stored_weights(backbone)) | tensors, about)
            remove(unfinished)
            give_back()
            stored = read_coarse(path)
        tensors, about = stored
        message = HeaderAssignment(
            config=assignment.config,
            backbone=without_prefix("backbone", tensors),
            plan=about.plan,
            header=without_prefix("header", tensors),
            linear=without_prefix("linear", tensors),
            class_names=assignment.class_names,
            preprocessing=assignment.preprocessing,
        )
        return CoarseModel(message, HeaderPlan.model_validate(about.plan), assigned)

    def _contenders(self, coarse: CoarseModel, group: Group) -> list[HeaderContender]:
        """The searched header's results on the edge's own data, then those of its rivals."""
        path = group.folder / CONTENDERS
        stored = if_sound(path, lambda path: read_sealed_json(path, list[StoredContender]))
        if stored is None:
            _, about = read_coarse(group.folder / COARSE)
            rivals: list[Contender] = []
            if self._settings.search.rivals:
                with self._journal.stage(group.name, "header rivals", "edge") as progress:
                    rivals = coarse.assigned.contest.rivals(
                        coarse.assigned.to_search,
                        coarse.backbone,
                        parameter_count(coarse.plan.shapes()),
                        group.generators(self._settings.seed),
                        progress,
                        searched=any(told["evaluated"] for told in about.contenders),
                    )
            write_sealed_json(path, about.contenders + [rival.document() for rival in rivals])
            stored = read_sealed_json(path, list[StoredContender])
        return [
            HeaderContender(
                name=told.name,
                params=told.params,
                accuracy=told.choice.accuracy,
                loss=told.choice.loss,
                evaluated=told.evaluated,
            )
            for told in stored
        ]

    def _similarity(self, coarse: CoarseModel, group: Group, settled: Collection[str]) -> Peers:
        """Send the coarse model, gather feature samples, decide who listens to whom (Eq. 19-20).

        The ``settled`` have the model; the samples that they once sent are on disk.
        """
        if stored := Peers.read(group.folder):
            return stored
        asked = self._personalization
        hidden = coarse.plan.pooled_size
        longest = coarse.longest_feature if asked.rows_sent else 0.0

        def check(name: str, reply: FeatureSample) -> None:
            check_sample(name, reply, asked, hidden, longest)

        others = [name for name in group.members if name not in settled]
        replies = self._devices.ask(coarse.message, FeatureSample, others, check)
        remember(group.folder / SAMPLES, replies)
        told = recall_samples(group.folder / SAMPLES, settled) | replies
        told = {name: told[name] for name in group.members if name in told}
        with self._journal.stage(group.name, "similarity", "edge"):
            samples = [reply.rows().numpy() for reply in told.values()]
            weights = who_listens_to_whom(samples, asked.similarity, asked.temperature)
        keys = {name: reply.public_key for name, reply in told.items()}
        rows, columns = to_lists(weights)
        peers = Peers(list(told), rows, keys, columns)
        peers.write(group.folder)
        return peers

    def _round(self, told: Rounds, coarse: CoarseModel, peers: Peers, group: Group) -> Rounds:
        """One round of Algorithm 2; the last one if no device's header changes any more."""
        updates, shortened = self._updates(told, coarse, peers, group)

        def check(name: str, report: RoundReport) -> None:
            check_pruned(name, report, told.done, coarse.plan)

        reports = self._devices.call(updates, RoundReport, check)
        return told.after(
            absent=[n for n in peers.devices if n not in updates and n not in told.settled],
            shortened=shortened,
            last=not any(report.changed for report in reports.values()),
            rounds=self._personalization.rounds,
        )

    def _updates(
        self, told: Rounds, coarse: CoarseModel, peers: Peers, group: Group
    ) -> tuple[dict[str, Update], Mapping[str, float]]:
        """Gather uploads and mix them for each device as the rule says.

        Returns:
            By device what it gets back, and by how much its header's update was shortened.
        """
        number, plan, rule = told.done, coarse.plan, self._rule
        asked = [name for name in peers.devices if name not in told.settled]
        while True:
            starts = rule.starts(number, asked, peers.keys, peers.among)

            def check(name: str, upload: Upload, asked: list[str] = asked) -> None:
                check_round(name, upload.round, number)
                rule.check(name, upload, plan, asked)

            uploads = self._devices.call(starts, rule.upload_type, check)
            if not rule.hidden or len(uploads) == len(asked):
                break
            asked = list(uploads)  # the masks of a device that failed would stay in all sums
        counted: dict[str, tuple[Upload, float]] = {name: (u, 1.0) for name, u in uploads.items()}
        if not rule.hidden:
            folder, decay = group.folder / UPLOADS, self._personalization.stale_decay
            remember(folder, uploads)
            known = peers.devices, decay, rule.upload_type, told.settled
            counted = recall(folder, number, uploads, *known)
        among = peers.among(counted, [freshness for _, freshness in counted.values()])
        sent = {name: upload for name, (upload, _) in counted.items()}
        mixture = rule.mix(sent, plan, coarse.message.header, among)
        updates = {name: rule.update(starts[name], mixture.parts[name]) for name in uploads}
        return updates, {n: s for n, s in mixture.shortened.items() if n not in told.settled}
