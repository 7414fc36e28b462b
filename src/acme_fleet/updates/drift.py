"""Drift of a device's data since its run, and the gain of a refresh, on the device's own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import HostData
from acme_fleet.data.samples import Samples, Splits, join
from acme_fleet.device.refinement import train_header
from acme_fleet.edge.similarity import transport_distance
from acme_fleet.errors import RunError
from acme_fleet.inspection.predict import open_model
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header.module import Header
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.seeding import generator, threads
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.evaluation import evaluate

_MOST_ROWS = 200  # of a distance


@dataclass(frozen=True)
class ClassShift:
    """Shares of a class among all old and all new samples."""

    name: str
    old: float
    new: float


@dataclass(frozen=True)
class Drift:
    """A device's shipped model on its old and its new data.

    Attributes:
        task: judges.
        old, new: the shipped model on the old test samples, and on all new samples.
        classes: shares of every class that occurs, the largest change first.
        distance: 1-Wasserstein distance of pooled features between as many old and new samples
            (Eq. 19); none where there are too few.
        within: the same between two such samples of the old data, which is noise alone.
        rows: of each of these samples.
        before, after: the shipped model, and one whose header has trained on a part of the new
            data, on another part of the new data.
        after_old: the latter on the old test samples.
    """

    task: Task
    old: Evaluation
    new: Evaluation
    classes: list[ClassShift]
    distance: float | None
    within: float | None
    rows: int
    before: Evaluation
    after: Evaluation
    after_old: Evaluation


def measure_drift(run_dir: str | Path, device: str, data: str | Path) -> Drift:
    """Compare a device's new data with those of its run. Nothing is written, nothing is sent.

    The refresh is the device's alone: the header that ships trains on the new data as long as in a
    run; the epoch is chosen on a validation part.

    Args:
        run_dir: a run directory.
        device: its name.
        data: file or folder of the new samples, of the form of the fleet's data.

    Raises:
        RunError: if the run or the device does not exist, or has no finished model.
        FleetError: if the data cannot be read, are too few, or of unknown classes.
    """
    run = RunDirectory.open(run_dir)
    own, fleet = open_model(run.path, device), run.fleet
    header = own.model.header
    if not isinstance(header, Header):
        raise RunError(f"{own.folder} holds no header that a device can train")
    with threads(fleet.threads):
        task, known = task_of(fleet.task), (device, own.class_names, own.preprocessing)
        parts = [
            HostData.read(each, device).splits(*known)
            for each in (fleet, _with_data(fleet, device, Path(data)))
        ]
        old, new = (_features(own.model.backbone, splits) for splits in parts)
        everything = _all(new)
        draw = generator(fleet.seed, device, "drift")
        rows, distance, within = _distances(_all(old), everything, draw)
        training = fleet.personalization.training_in_all
        trained, _ = train_header(task, header, new, training, draw)
        return Drift(
            task=task,
            old=evaluate(task, header, old.test),
            new=evaluate(task, header, everything),
            classes=_class_shifts(_all(old), everything, own.class_names),
            distance=distance,
            within=within,
            rows=rows,
            before=evaluate(task, header, new.test),
            after=evaluate(task, trained, new.test),
            after_old=evaluate(task, trained, old.test),
        )


def _with_data(fleet: Fleet, name: str, data: Path) -> Fleet:
    """The fleet with other data of a device."""
    clusters = [
        cluster.model_copy(
            update={
                "devices": [
                    device.model_copy(update={"data": data.absolute()})
                    if device.name == name
                    else device
                    for device in cluster.devices
                ]
            }
        )
        for cluster in fleet.clusters
    ]
    return fleet.model_copy(update={"clusters": clusters})


def _features(backbone: PreTrainedModel, splits: Splits) -> Splits:
    parts = splits.train, splits.validation, splits.test
    return Splits(*(feature_samples(backbone, part) for part in parts))


def _all(splits: Splits) -> Samples:
    return join([splits.train, splits.validation, splits.test])


def _distances(
    old: Samples, new: Samples, draw: torch.Generator
) -> tuple[int, float | None, float | None]:
    """Rows of each sample, the distance between old and new ones, and that within the old."""
    rows = min(_MOST_ROWS, len(new), len(old) // 2)
    if not rows:
        return 0, None, None
    first, second = torch.randperm(len(old), generator=draw)[: 2 * rows].split(rows)
    chosen = torch.randperm(len(new), generator=draw)[:rows]
    before, again, after = (
        samples.inputs["pooled"][index].double().numpy()
        for samples, index in ((old, first), (old, second), (new, chosen))
    )
    return rows, transport_distance(before, after), transport_distance(before, again)


def _class_shifts(old: Samples, new: Samples, names: list[str]) -> list[ClassShift]:
    before, after = (
        torch.bincount(samples.labels.flatten(), minlength=len(names)) / len(samples.labels)
        for samples in (old, new)
    )
    shifts = [
        ClassShift(name, float(before[number]), float(after[number]))
        for number, name in enumerate(names)
        if before[number] or after[number]
    ]
    return sorted(shifts, key=lambda shift: -abs(shift.new - shift.old))
