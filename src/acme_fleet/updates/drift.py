"""Drift of a device's data since its run, and the gain of a refresh, on the device's own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import HostData
from acme_fleet.data.samples import Samples, Splits, join
from acme_fleet.device.refinement import HeaderState, train_header
from acme_fleet.edge.similarity import transport_distance
from acme_fleet.errors import RunError
from acme_fleet.inspection.predict import open_model
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header.module import Header
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.seeding import derive_seed, generator, threads
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.evaluation import answers, evaluate
from acme_fleet.updates.chance import classes_chance, features_chance, gain_chance, hits_chance

_MOST_ROWS = 200  # of a distance
_LEVEL = 0.05


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
        chances: the probability that a change is chance, of each comparison that could be made.
        gain_chance: that the gain from ``before`` to ``after`` is; none where it cannot be told.
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
    chances: dict[str, float]
    gain_chance: float | None

    @property
    def changed(self) -> list[str]:
        """The comparisons beyond chance: at 5 % for all of them together (Bonferroni)."""
        return [name for name, p in self.chances.items() if p * len(self.chances) < _LEVEL]

    @property
    def gains(self) -> bool | None:
        """True if a refresh is shown to gain; none where that cannot be told."""
        return None if self.gain_chance is None else self.gain_chance < _LEVEL


def measure_drift(run_dir: str | Path, device: str, data: str | Path) -> Drift:
    """Compare a device's new data with those of its run. Nothing is written, nothing is sent.

    The refresh is the device's alone: the header that ships starts on the new data as a device's
    does, and trains as long as in a run; the epoch is chosen on a validation part.

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
        rows, distance, within, alike = _distances(_all(old), everything, draw)
        training = fleet.personalization.training_in_all
        begun = HeaderState.start(task, header, new).current
        trained, _ = train_header(task, begun, new, training, draw)
        on_old, on_new = evaluate(task, header, old.test), evaluate(task, header, everything)
        seed = derive_seed(fleet.seed, device, "drift")
        chances = _chances(task, (on_old, on_new), (_all(old), everything), seed)
        return Drift(
            task=task,
            old=on_old,
            new=on_new,
            classes=_class_shifts(_all(old), everything, own.class_names),
            distance=distance,
            within=within,
            rows=rows,
            before=evaluate(task, header, new.test),
            after=evaluate(task, trained, new.test),
            after_old=evaluate(task, trained, old.test),
            chances=chances if alike is None else {**chances, "features": alike},
            gain_chance=_gain_chance(task, header, trained, new.test),
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
) -> tuple[int, float | None, float | None, float | None]:
    """Rows of each sample, the distance between old and new ones, that within the old, and the
    probability that the former is chance."""
    rows = min(_MOST_ROWS, len(new), len(old) // 2)
    if not rows:
        return 0, None, None, None
    first, second = torch.randperm(len(old), generator=draw)[: 2 * rows].split(rows)
    chosen = torch.randperm(len(new), generator=draw)[:rows]
    before, again, after = (
        samples.inputs["pooled"][index].double().numpy()
        for samples, index in ((old, first), (old, second), (new, chosen))
    )
    alike = features_chance(before, after, np.random.default_rng(draw.initial_seed()))
    return rows, transport_distance(before, after), transport_distance(before, again), alike


def _chances(
    task: Task, judged: tuple[Evaluation, Evaluation], data: tuple[Samples, Samples], seed: int
) -> dict[str, float]:
    """Chances of the changes in classes and hits; tokens have no such counts, being no draws."""
    if not task.whole_hits:
        return {}
    most = 1 + max(int(samples.labels.max()) for samples in data)
    old, new = (np.bincount(samples.labels.numpy(), minlength=most) for samples in data)
    hits = [(round(each.score * each.count), each.count) for each in judged]
    return {
        "shares of classes": classes_chance(old, new, np.random.default_rng(seed)),
        task.metric: hits_chance(*hits),
    }


def _gain_chance(task: Task, before: Header, after: Header, test: Samples) -> float | None:
    if not task.whole_hits:
        return None
    right = [(answers(each, test) == test.labels).numpy() for each in (before, after)]
    return gain_chance(*right)


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
