"""A finished run becomes the run of another fleet; what did not change is taken over.

The new directory is made beside its place and appears as a whole, with everything in it that is
taken over. From there on it is an interrupted run, which goes on as any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from acme_fleet.cloud.stored import write_kept
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import RunError
from acme_fleet.inspection.plan import check_feasible, make_plan
from acme_fleet.pipeline import assemble, customize
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


def update(
    previous: str | Path,
    fleet: Fleet,
    out: str | Path,
    *,
    refresh: Collection[str] = (),
    observer: Observer | None = None,
) -> Summary:
    """Give every device of a changed fleet its model; what did not change stays bit for bit.

    Args:
        previous: the directory of a finished run; nothing in it is changed.
        fleet: the fleet as it is to be.
        out: the new run directory.
        refresh: devices that train again though nothing changed, or ``all``.
        observer: is told about the progress.

    Raises:
        FleetError: if another setting differs than clusters and devices, or devices would train
            again that were not asked to.
        RunError: if the earlier run is not finished, or the new directory cannot be used.
    """
    old, new = RunDirectory.open(previous), RunDirectory(Path(out))
    before = Summary.read(old.finished())
    if before.many_hosts:
        raise RunError(
            f"{old.path} is a run on many hosts, each of which has its part of it; an update takes "
            f"over from a run on one machine"
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
            _take_over(changes, before, old, making, observer)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    with writing(new.path):
        making.replace(new.path)
    return customize(changes.fleet, new.path, resume=True, observer=observer)


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
) -> None:
    """Make a run directory of everything that is not computed again."""
    fleet = changes.fleet
    world = load_world(fleet)
    reference = untrained_reference(fleet, world.public, world.classes, world.vocabulary)
    check_feasible(fleet, make_plan(fleet, world, reference))
    run = RunDirectory.create(folder, fleet, resume=False)
    copy_cloud(old, run)
    if changes.same_data:
        copy_rival(old, run)
    journal = Journal(run.events, observer)
    with threads(fleet.threads):
        cloud = assemble(fleet, world, run, journal)
        _, elastic = cloud.prepare()
        cloud.match(elastic)  # edge servers note the parts that devices are in
        write_kept(run.cloud, kept_candidates(changes, run))
        choices = cloud.match(elastic)
    groups = [
        Takeover.plan(changes, old, run, choice, cloud.grid.variants[choice.selection.chosen])
        for choice in choices
    ]
    for group in groups:
        group.check_peers()
    for group in groups:
        group.copy()
        for name in group.settled:
            with journal.stage(name, "taken over", "device"):
                pass
    told = UpdateSummary(
        previous=str(old.path.absolute()),
        kept=[name for group in groups for name in group.settled],
        computed={name: why for group in groups for name, why in group.computed.items()},
        left=changes.left,
        searched={group.group.name: group.searched for group in groups if group.searched},
        sent_before=before.sent,
    )
    write_sealed_json(run.update, told.model_dump(mode="json"))
