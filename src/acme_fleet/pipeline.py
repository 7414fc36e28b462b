"""The whole of ACME on one page: phases 1, 2-1 and 2-2 over a fleet on this machine."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from acme_fleet.cloud.server import CloudServer
from acme_fleet.config.devices import Cluster
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World, load_world
from acme_fleet.device.client import DeviceClient
from acme_fleet.device.memory import FeatureMemory
from acme_fleet.device.state import DeviceFolder, changed_files
from acme_fleet.distillation.reference import (
    check_reference,
    checkpoint_backbone,
    known_pooling,
    untrained_reference,
)
from acme_fleet.errors import DamagedError, WriteError
from acme_fleet.inspection.plan import Plan, check_feasible, make_plan
from acme_fleet.inspection.workload import expected_work
from acme_fleet.links.base import Link
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.messages.base import Message
from acme_fleet.messages.cloud_edge import ClusterReport
from acme_fleet.models.features import Classifier
from acme_fleet.outcome import Beside, choice_records, kept_by_devices, summarize
from acme_fleet.report.page.html import write_report
from acme_fleet.report.warnings import commonest_share, of_fleet, run_warnings
from acme_fleet.roles import FindRun, cloud_role, device_role, edge_role
from acme_fleet.runs.atomic import check_writable, remove_partial
from acme_fleet.runs.directory import CHOICES, RunDirectory
from acme_fleet.runs.forecast import Earlier
from acme_fleet.runs.journal import Journal, Observer, finished_stages, read_journal
from acme_fleet.runs.locks import held
from acme_fleet.runs.progress import begun_stages, progress_file
from acme_fleet.runs.sealed import if_sound, read_sealed_json, write_sealed_json
from acme_fleet.runs.summary import Rival, Summary, UpdateSummary
from acme_fleet.seeding import threads
from acme_fleet.simulation.header_rivals import measure_headers
from acme_fleet.simulation.probe_rival import ProbeResult, measure_probe
from acme_fleet.simulation.together import train_ahead
from acme_fleet.simulation.whole_reference import WholeResult, measure_whole
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.group import ALONE, Group
from acme_fleet.training.precision import training_device

_LOG = logging.getLogger(__name__)
Connect = Callable[[Fleet, World, RunDirectory, Journal], AbstractContextManager[Link]]


def customize(
    fleet: Fleet,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    connect: Connect | None = None,
    group: Group = ALONE,
) -> Summary:
    """Give every device of a fleet its own small model.

    Args:
        fleet: who takes part, which data, which settings.
        out: the run directory.
        resume: go on in a run directory of the same fleet that was interrupted, or start where
            there is nothing yet. A finished run, in which nobody is lost, is left as it is.
        observer: is told about the progress.
        connect: how the cloud reaches its edge servers; without it, all are in this process.
        group: processes that train the cloud's models with this one.

    Raises:
        FleetError: if fleet, data and machine do not fit together; before any training.
        RunError: if the run directory cannot be used, or another process works in it.
        QuorumError: if too few devices or edge servers answer; ``resume`` goes on from there.
    """
    fleet = fleet.with_paths_from(Path.cwd())  # the run directory's copy is read from elsewhere
    if resume and (done := _finished(RunDirectory(Path(out)), fleet, connect is None)):
        return done
    task_of(fleet.task).check(fleet)
    training_device(fleet.accelerator, "accelerator")  # refused before anything is written
    check_reference(fleet)
    check_writable(Path(out))
    world = load_world(fleet, None if connect is None else [])
    reference = untrained_reference(fleet, world.public, world.classes, world.vocabulary)
    plan = make_plan(fleet, world, reference)
    check_feasible(fleet, plan)
    with held(Path(out)):
        run = RunDirectory.create(out, fleet, resume=resume)
        remove_partial(run.path)  # of processes that were killed
        try:
            return _run(fleet, world, reference, plan, run, observer, connect, group)
        except WriteError as error:
            told = f"{error}; what was finished is kept, go on: {run.resume_command}"
            raise WriteError(told) from error
        except DamagedError as error:
            told = f"{error}; put back a copy of the file, or run again with another --out"
            raise DamagedError(told) from error


def _finished(run: RunDirectory, fleet: Fleet, models_here: bool) -> Summary | None:
    """The summary of a run of this fleet that has nothing left to do."""
    if not run.exists() or not run.summary.exists():
        return None
    RunDirectory.create(run.path, fleet, resume=True)  # refuses another fleet
    summary = if_sound(run.summary, Summary.read)
    if summary is None or summary.lost or any(cluster.lost for cluster in summary.clusters):
        return None
    for device in summary.devices if models_here else []:
        for name in changed_files(run.device(device.name)) or []:
            _LOG.warning("%s is not as the run left it", run.device(device.name) / name)
    return summary


def _run(
    fleet: Fleet,
    world: World,
    initial: Classifier,
    plan: Plan,
    run: RunDirectory,
    observer: Observer | None,
    connect: Connect | None,
    group: Group,
) -> Summary:
    """Do what is left to do, and write what was measured."""
    earlier = Earlier(finished_stages(run.events), begun_stages(run.path))
    with progress_file(run.path, observer) as progress:
        progress.plan(expected_work(fleet, plan), earlier)
        journal = Journal(run.events, progress)
        return _customized(fleet, world, initial, plan, run, journal, connect, group)


def _customized(
    fleet: Fleet,
    world: World,
    initial: Classifier,
    plan: Plan,
    run: RunDirectory,
    journal: Journal,
    connect: Connect | None,
    group: Group,
) -> Summary:
    # None of a task without a probe, or where the devices' data are elsewhere.
    rival = bool(world.private) and task_of(fleet.task).probe is not None
    untouched = None
    if rival and fleet.reference.checkpoint is not None and world.vocabulary is None:
        untouched = copy.deepcopy(initial.backbone)  # the cloud server trains θ0 in place
    try:
        with (
            threads(fleet.threads),
            connect(fleet, world, run, journal)
            if connect
            else nullcontext(embedded_link(fleet, world, run, journal)) as edges,
        ):
            cloud = cloud_role(fleet, world, edges, run, journal, initial, group)
            # Phase 1 (Algorithm 1): an elastic backbone, and the right part for each cluster.
            reference, elastic = cloud.prepare()
            choices = cloud.match(elastic)
            write_sealed_json(run.path / CHOICES, choice_records(cloud.grid, choices))
            # Phases 2-1 and 2-2 (Algorithm 2): edges search headers, their devices refine them.
            finished = cloud.distribute(elastic, choices)
            probe = _probe(fleet, world, untouched, run, journal) if rival else None
            whole = None
            if world.private:
                known = reference.accuracy is not None
                whole = _whole(fleet, world, cloud.backbones.whole, run, journal, answers=known)
            headers = {}
            if world.private and fleet.personalization.rivals:
                groups = [report for _, report in finished]
                headers = _headers(fleet, world, groups, run, journal)
    except BaseException:
        journal.cancel()  # roles that still work in other threads
        raise
    events, damaged = read_journal(run.events)
    for line, reason in damaged.items():
        _LOG.warning("%s, line %d is left out: %s", run.events, line, reason)
    update = read_sealed_json(run.update, UpdateSummary) if run.update.exists() else None
    kept = kept_by_devices(run, world.private)
    beside = Beside(probe, whole, plan.holdings, kept, headers)
    summary = summarize(fleet, reference, cloud.grid, finished, cloud.lost, events, beside, update)
    commonest = {name: commonest_share(own.test.labels) for name, own in world.private.items()}
    told = {
        "many_hosts": connect is not None,
        "left_out": cloud.left_out,
        "compute": cloud.backbones.numbers,
        "damaged_events": len(damaged),
        "warnings": run_warnings(summary, plan.holdings, commonest) + of_fleet(fleet, plan),
    }
    summary = summary.model_copy(update=told)
    write_report(summary, events, run.report)
    summary.write(run.summary)  # the last file of all: where it is, the run is finished
    return summary


def _probe(
    fleet: Fleet,
    world: World,
    untouched: PreTrainedModel | None,
    run: RunDirectory,
    journal: Journal,
) -> ProbeResult:
    """Measure the practitioner's rival beside the protocol, on this machine.

    Args:
        fleet, world, run, journal: of this run.
        untouched: the checkpoint's backbone; none for raw inputs.
    """
    path = run.path / "rivals" / "probe.json"
    result = if_sound(path, lambda path: read_sealed_json(path, ProbeResult))
    if result is None:
        pooling = None
        if world.vocabulary is not None:  # the rival keeps the checkpoint whole
            whole = fleet.backbone.model_copy(update={"vocabulary": None})
            world = load_world(fleet.model_copy(update={"backbone": whole}))
            untouched, _ = checkpoint_backbone(fleet.reference, world.public.train.inputs)
        if untouched is not None:
            pooling = known_pooling(fleet.reference, untouched.config.hidden_size)
        with journal.stage("rivals", "ten lines", "rivals") as progress:
            result = measure_probe(untouched, pooling, world, progress)
        write_sealed_json(path, asdict(result))
    return result


def _whole(
    fleet: Fleet,
    world: World,
    reference: Classifier,
    run: RunDirectory,
    journal: Journal,
    *,
    answers: bool,
) -> WholeResult:
    """Measure the whole reference on every device's test set, beside the protocol."""
    path = run.path / "rivals" / "whole.json"
    result = if_sound(path, lambda path: read_sealed_json(path, WholeResult))
    if result is None or (answers and result.scores.keys() != world.private.keys()):
        with journal.stage("rivals", "whole reference", "rivals") as progress:
            result = measure_whole(task_of(fleet.task), reference, world, progress, answers=answers)
        write_sealed_json(path, asdict(result))
    return result


def _headers(
    fleet: Fleet,
    world: World,
    groups: Sequence[ClusterReport],
    run: RunDirectory,
    journal: Journal,
) -> dict[str, dict[str, Rival]]:
    """Train the headers' rivals beside the protocol, group by group; by device and name."""
    found: dict[str, dict[str, Rival]] = {}
    memory, settings, task = FeatureMemory(), fleet.personalization, task_of(fleet.task)
    for report in groups:
        path = run.path / "rivals" / f"headers-{report.name.replace(':', '-')}.json"
        known = if_sound(path, lambda path: read_sealed_json(path, dict[str, dict[str, Rival]]))
        names = [device.name for device in report.reports]
        if known is None or known.keys() != set(names):
            group = {
                name: (DeviceFolder(run.device(name), memory), world.private[name])
                for name in names
            }
            with journal.stage(report.name, "alone and FedAvg", "rivals") as progress:
                known = measure_headers(task, settings, group, fleet.seed, progress)
            told = {name: {n: asdict(r) for n, r in own.items()} for name, own in known.items()}
            write_sealed_json(path, told)
        found |= known
    return found


def assemble(fleet: Fleet, world: World, run: RunDirectory, journal: Journal) -> CloudServer:
    """The cloud server of a fleet that is in this process."""
    reference = untrained_reference(fleet, world.public, world.classes, world.vocabulary)
    edges = embedded_link(fleet, world, run, journal)
    return cloud_role(fleet, world, edges, run, journal, reference)


def embedded_link(
    fleet: Fleet,
    world: World,
    run: RunDirectory,
    journal: Journal,
    earlier: FindRun | None = None,
) -> Link:
    """All edge servers and devices, each with its own data and folder."""
    edges, memory = {}, FeatureMemory()
    for cluster in fleet.clusters:
        devices = {
            device.name: device_role(fleet, device, world, run, journal, memory, earlier)
            for device in cluster.devices
        }
        link = EmbeddedLink(
            cluster.name,
            devices,
            journal,
            "device",
            _ahead(fleet, cluster, devices, journal),
            fleet.devices_at_once,
        )
        edges[cluster.name] = edge_role(fleet, cluster, world, link, run, journal, earlier)
    return EmbeddedLink("cloud", edges, journal, "cloud")


def _ahead(
    fleet: Fleet, cluster: Cluster, devices: dict[str, DeviceClient], journal: Journal
) -> Callable[[Mapping[str, Message]], None]:
    """The work that a cluster's devices do together; none where each works alone."""
    if fleet.devices_at_once == 1:
        return lambda _: None
    task, settings = task_of(fleet.task), fleet.personalization
    return lambda requests: train_ahead(
        task,
        devices,
        requests,
        settings,
        lambda stage: journal.stage(cluster.name, stage, "edge"),
    )
