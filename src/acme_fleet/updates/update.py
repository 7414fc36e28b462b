"""A finished run becomes the run of another fleet; what did not change is taken over.

The new directory is made beside its place and appears as a whole. Before, the roles have taken over
what each of them has finished in the earlier run, on one machine or on many hosts. From there on it
is an interrupted run, which goes on as any other.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

from acme_fleet.cloud.stored import write_kept
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import RunError
from acme_fleet.inspection.plan import check_feasible, make_plan
from acme_fleet.messages.cloud_edge import TakenGroup, TakeoverRequest
from acme_fleet.pipeline import Connect, customize, embedded_link
from acme_fleet.roles import cloud_role
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal, Observer
from acme_fleet.runs.locks import LOCK, held
from acme_fleet.runs.sealed import write_sealed_json
from acme_fleet.runs.summary import Summary, UpdateSummary
from acme_fleet.seeding import threads
from acme_fleet.training.precision import training_device
from acme_fleet.updates.changes import Changes
from acme_fleet.updates.takeover import Takeover, copy_cloud, copy_rival, kept_candidates

_HERE = "0" * 32
"""In place of a run's identity, where all of it is on this machine."""


def update(
    previous: str | Path,
    fleet: Fleet,
    out: str | Path,
    *,
    refresh: Collection[str] = (),
    observer: Observer | None = None,
    connect: Connect | None = None,
) -> Summary:
    """Give every device of a changed fleet its model; what did not change stays bit for bit.

    Args:
        previous: the directory of a finished run; nothing in it is changed.
        fleet: the fleet as it is to be.
        out: the new run directory.
        refresh: devices that train again though nothing changed, or ``all``.
        observer: is told about the progress.
        connect: how the cloud reaches its edge servers, for a run on many hosts.

    Raises:
        FleetError: if another setting differs than clusters and devices, or devices would train
            again that were not asked to.
        RunError: if the earlier run is not finished, a host has not what it left there, or the new
            directory cannot be used.
    """
    old, new = RunDirectory.open(previous), RunDirectory(Path(out))
    before = Summary.read(old.finished())
    if before.many_hosts and connect is None:
        raise RunError(
            f"{old.path} is a run on many hosts, each of which has its part of it; say acme update "
            f"on its cloud's host"
        )
    new.require_new()
    fleet = fleet.with_paths_from(Path.cwd())
    changes = Changes.between(old.fleet, before, fleet, refresh)
    training_device(fleet.accelerator, "accelerator")  # refused before anything is written
    place = new.path.absolute()
    making = place.with_name(f".{place.name}.update")
    with held(making):  # refused where another update of the same name is at it
        try:
            _empty(making)
            _take_over(changes, before, old, making, observer, connect)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    with writing(new.path):
        making.replace(new.path)
    return customize(changes.fleet, new.path, resume=True, observer=observer, connect=connect)


def _empty(folder: Path) -> None:
    """Remove what an update that was killed has left."""
    with writing(folder):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def _take_over(
    changes: Changes,
    before: Summary,
    old: RunDirectory,
    folder: Path,
    observer: Observer | None,
    connect: Connect | None,
) -> None:
    """Make a run directory of everything that is not computed again; each host does its part."""
    fleet = changes.fleet
    world = load_world(fleet, None if connect is None else [])
    reference = untrained_reference(fleet, world.public, world.classes, world.vocabulary)
    check_feasible(fleet, make_plan(fleet, world, reference))
    run = RunDirectory.create(folder, fleet, resume=False)
    copy_cloud(old, run)
    if changes.same_data:
        copy_rival(old, run)
    journal = Journal(run.events, observer)
    identity = old.on_hosts().run if connect else _HERE
    with (
        threads(fleet.threads),
        connect(fleet, world, run, journal)
        if connect
        else nullcontext(embedded_link(fleet, world, run, journal, lambda _: old)) as edges,
    ):
        cloud = cloud_role(fleet, world, edges, run, journal, reference)
        _, elastic = cloud.prepare()
        cloud.match(elastic)  # edge servers note the parts that devices are in
        write_kept(run.cloud, kept_candidates(changes, cloud.parts))
        groups = [
            Takeover.plan(changes, elastic, cloud.parts, choice, cloud.variant(choice))
            for choice in cloud.match(elastic)
        ]
        requests = _requests(groups, identity)
        if refused := cloud.take_over(requests):
            told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise RunError(f"nothing was computed, as not all can keep what they have: {told}")
    for group in groups:
        for name in group.settled:
            with journal.stage(name, "taken over", "device"):
                pass
    told = UpdateSummary(
        previous=str(old.path.absolute()),
        kept=[name for group in groups for name in group.settled],
        computed={name: why for group in groups for name, why in group.computed.items()},
        left=changes.left,
        searched={group.name: group.searched for group in groups if group.searched},
        sent_before=before.sent,
    )
    write_sealed_json(run.update, told.model_dump(mode="json"))


def _requests(groups: Sequence[Takeover], identity: str) -> dict[str, TakeoverRequest]:
    """A message to each edge server that takes something over."""
    taken: defaultdict[str, list[TakenGroup]] = defaultdict(list)
    for group in groups:
        if (own := group.taken()) is not None:
            taken[group.edge].append(own)
    return {edge: TakeoverRequest(run=identity, groups=own) for edge, own in taken.items()}
