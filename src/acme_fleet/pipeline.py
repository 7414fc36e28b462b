"""The whole of ACME on one page: phases 1, 2-1 and 2-2 over a fleet on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.cloud.choices import ClusterChoice
from acme_fleet.cloud.objectives import Grid, candidate_grid, candidate_sizes
from acme_fleet.cloud.reference import untrained_reference
from acme_fleet.cloud.server import CloudServer, ReferenceResult
from acme_fleet.cost.privacy import PrivacyLoss
from acme_fleet.cost.size import parameter_count
from acme_fleet.data.partition import World, load_world
from acme_fleet.device.masking import public_key
from acme_fleet.errors import FleetError
from acme_fleet.fleet import Fleet, Header
from acme_fleet.journal import Journal, Observer, read_events
from acme_fleet.links.base import Link
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.messages import ClusterReport
from acme_fleet.models.features import Classifier, map_axes
from acme_fleet.models.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.supernet import ElasticClassifier
from acme_fleet.report.html import write_report
from acme_fleet.report.leaving import sent_by_devices
from acme_fleet.report.summary import (
    Candidate,
    ClusterSummary,
    Contender,
    DeviceSummary,
    ReferenceSummary,
    Summary,
)
from acme_fleet.report.traffic import count_traffic, expected_loss, privacy_losses, row_bytes
from acme_fleet.roles import cloud_role, device_role, edge_role
from acme_fleet.run_directory import RunDirectory
from acme_fleet.seeding import threads

Connect = Callable[[Fleet, World, RunDirectory, Journal], AbstractContextManager[Link]]


def customize(
    fleet: Fleet,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    connect: Connect | None = None,
) -> Summary:
    """Give every device of a fleet its own small model.

    Args:
        fleet: who takes part, which data, which settings.
        out: the run directory.
        resume: go on in a run directory of the same fleet that was interrupted.
        observer: is told about the progress.
        connect: how the cloud reaches its edge servers; without it, all are in this process.

    Raises:
        FleetError: if fleet and data do not fit together; before any training.
        RunError: if the run directory cannot be used.
        QuorumError: if too few devices or edge servers answer; ``resume`` goes on from there.
    """
    fleet = fleet.with_paths_from(Path.cwd())  # the run directory's copy is read from elsewhere
    world = load_world(fleet, None if connect is None else [])
    check_feasible(fleet, plan(fleet, world))
    run = RunDirectory.create(out, fleet, resume=resume)
    journal = Journal(run.events, observer)
    try:
        with (
            threads(fleet.threads),
            connect(fleet, world, run, journal)
            if connect
            else nullcontext(embedded_link(fleet, world, run, journal)) as edges,
        ):
            cloud = cloud_role(fleet, world, edges, run, journal)
            # Phase 1 (Algorithm 1): an elastic backbone, and the right part for each cluster.
            reference, elastic = cloud.prepare()
            choices = cloud.match(elastic)
            # Phases 2-1 and 2-2 (Algorithm 2): edges search headers, their devices refine them.
            finished = cloud.distribute(elastic, choices)
    except BaseException:
        journal.cancel()  # roles that still work in other threads
        raise
    events = read_events(run.events)
    summary = summarize(fleet, reference, cloud.grid, finished, cloud.lost, events)
    summary = summary.model_copy(update={"many_hosts": connect is not None})
    summary.write(run.summary)
    write_report(summary, events, run.report)
    return summary


def assemble(fleet: Fleet, world: World, run: RunDirectory, journal: Journal) -> CloudServer:
    """The cloud server of a fleet that is in this process."""
    return cloud_role(fleet, world, embedded_link(fleet, world, run, journal), run, journal)


def embedded_link(fleet: Fleet, world: World, run: RunDirectory, journal: Journal) -> Link:
    """All edge servers and devices, each with its own data and folder."""
    edges = {}
    for cluster in fleet.clusters:
        devices = {
            device.name: device_role(fleet, device, world, run, journal)
            for device in cluster.devices
        }
        link = EmbeddedLink(cluster.name, devices, journal)
        edges[cluster.name] = edge_role(fleet, cluster, world, link, run, journal)
    return EmbeddedLink("cloud", edges, journal)


# --- the plan: known before any training ------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run would choose from.

    Attributes:
        grid: the candidates (w, d).
        sizes: exact bytes of each with the smallest header, shape ``(candidates,)``. For a global
            allocation, which is known only after training, those of the uniform one: its bound.
        limits: min C_n for each cluster by name.
        feature_bytes: what each device uploads once (Eq. 19), before the message's frame.
        round_bytes: the most that a device uploads in one round, likewise: its importance set
            (Eq. 18) or masked shares of it and, where headers are mixed, its header.
        loss: (ε, δ) of what a device sends with noise; none where it adds none.
    """

    grid: Grid
    sizes: np.ndarray
    limits: dict[str, int]
    feature_bytes: int
    round_bytes: int
    loss: PrivacyLoss | None


def examine(fleet: Fleet) -> Plan:
    """Load the data and make the plan, see :func:`plan`."""
    return plan(fleet, load_world(fleet))


def plan(fleet: Fleet, world: World) -> Plan:
    """Candidates with exact sizes, limits, and the bytes to expect; trains nothing.

    Raises:
        FleetError: if the model cannot be built for these data.
    """
    reference = untrained_reference(fleet, world.public, world.classes)
    grid = candidate_grid(fleet.backbone, reference)
    header = largest_header(fleet.header, reference)
    # A block of other operations may also have one layer that aligns its inputs.
    aligned = fleet.header.cells * fleet.header.blocks * fleet.header.channels
    personalization = fleet.personalization
    weights = 0 if personalization.mix == "importance" else parameter_count(header.shapes())
    masked = personalization.privacy.masking
    receivers = max(len(cluster.devices) for cluster in fleet.clusters) if masked else 1
    if masked:
        public_key(b"")  # its library must be there before any work is done
    return Plan(
        grid=grid,
        sizes=candidate_sizes(ElasticClassifier(reference), grid, fleet.header),
        limits={c.name: min(d.storage for d in c.devices) for c in fleet.clusters},
        feature_bytes=personalization.feature_samples * row_bytes(personalization, header.hidden),
        round_bytes=4 * (receivers * (header.neurons + aligned) + weights),
        loss=expected_loss(personalization),
    )


def largest_header(settings: Header, reference: Classifier) -> HeaderPlan:
    """The header with the most weights: the largest convolution everywhere."""
    block = Block(inputs=(0, 1), operations=("conv5", "conv5"))
    genotype = Genotype(
        blocks=(block,) * settings.blocks, cells=settings.cells, channels=settings.channels
    )
    classes, hidden = reference.head.weight.shape
    axes = map_axes(reference.backbone.config)
    return HeaderPlan(genotype=genotype, hidden=hidden, classes=classes, axes=axes)


def check_feasible(fleet: Fleet, plan: Plan) -> None:
    """Every cluster must be able to get something.

    Raises:
        FleetError: naming the cluster, its smallest device and the smallest candidate.
    """
    smallest = int(plan.sizes.min())
    for cluster in fleet.clusters:
        device = min(cluster.devices, key=lambda d: d.storage)
        if device.storage < smallest:
            raise FleetError(
                f"cluster {cluster.name}: the smallest candidate is {smallest:,} bytes, device "
                f"{device.name} stores {device.storage:,}; raise its storage, or offer smaller "
                f"candidates in backbone.widths and backbone.depths"
            )


# --- the summary ------------------------------------------------------------------------------


def summarize(
    fleet: Fleet,
    reference: ReferenceResult,
    grid: Grid,
    finished: list[tuple[ClusterChoice, ClusterReport]],
    lost: dict[str, str],
    events: list[dict[str, Any]],
) -> Summary:
    """Everything that was measured, in one record."""
    devices = [
        DeviceSummary(
            cluster=report.name,
            capacity_bytes=next(d.storage for d in fleet.devices if d.name == device.name),
            **device.model_dump(),
        )
        for _, report in finished
        for device in report.reports
    ]
    sent = sent_by_devices(events, [device.name for device in fleet.devices])
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if "stage" in event:
            seconds[event["stage"]] += event["seconds"]
    return Summary(
        name=fleet.name,
        seed=fleet.seed,
        seconds={stage: round(total, 3) for stage, total in seconds.items()},
        reference=ReferenceSummary(
            params=reference.params,
            patches=reference.patches,
            size_bytes=reference.size_bytes,
            accuracy=reference.accuracy,
        ),
        selection=fleet.selection,
        clusters=[_cluster(grid, *pair) for pair in finished],
        devices=devices,
        lost=lost,
        traffic=count_traffic(fleet, events, sum(device.raw_data_bytes for device in devices)),
        privacy=fleet.personalization.privacy,
        mix=fleet.personalization.mix,
        sent=sent,
        privacy_loss=privacy_losses(fleet, sent),
    )


def _cluster(grid: Grid, choice: ClusterChoice, report: ClusterReport) -> ClusterSummary:
    selection = choice.selection
    candidates = [
        Candidate(
            width=float(grid.widths[i]),
            depth=int(grid.depths[i]),
            loss=float(choice.objectives[i, 0]),
            accuracy=float(choice.accuracies[i]),
            energy_j=float(choice.objectives[i, 1]),
            size_bytes=int(choice.objectives[i, 2]),
            feasible=bool(i in selection.feasible),
            on_front=bool(i in selection.front),
            chosen=bool(i == selection.chosen),
        )
        for i in range(len(grid))
    ]
    chosen = candidates[selection.chosen]
    return ClusterSummary(
        name=report.name,
        width=chosen.width,
        depth=chosen.depth,
        storage_limit_bytes=choice.storage_bytes,
        candidates=candidates,
        feasible=len(selection.feasible),
        front=len(selection.front),
        header=report.header,
        genotype=dict(report.genotype),
        contenders=[Contender(**told.model_dump()) for told in report.contenders],
        device_names=report.device_names,
        similarity=report.similarity,
        lost=report.lost,
        missed=report.missed,
        shortened=report.shortened,
    )


def rebuild_report(run_dir: str | Path) -> Path:
    """Write the report of a finished run again; returns its path.

    Raises:
        RunError: if the directory holds no finished run.
    """
    run = RunDirectory.open(run_dir)
    write_report(Summary.read(run.finished()), read_events(run.events), run.report)
    return run.report
