"""Numbers of a report's first screen, of classes, and of fleets that are too large to list.

Plain numbers; :mod:`acme_fleet.report.page.html` puts them into words.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from acme_fleet.runs.summary import ClusterSummary, DeviceSummary, Summary

MOST_ROWS = 4000
"""Devices in a table that is sorted and searched; ``summary.json`` has the others."""
MOST_LISTED = 40
"""Devices that are drawn, and described one by one."""
LEAST_LISTED = 20
"""Of a larger fleet those that are described one by one: with the lowest accuracies."""
_MOST_CLASSES = 200
_MOST_CONFUSIONS = 12


@dataclass(frozen=True)
class Rival:
    """A mean accuracy, over the devices where it is known, beside what ships."""

    name: str
    accuracy: float
    size_bytes: int | None = None


@dataclass(frozen=True)
class Facts:
    """Numbers of the four answers.

    Attributes:
        expected: devices of the fleet. lost: those without a model, and why.
        too_large: devices whose model exceeds their limit.
        fullest: the device with the largest share of its limit in use, and this share.
        rivals: ours first.
        worst: the device with the lowest accuracy.
        smallest, largest: bytes of a device's model. latency_s: median over the devices.
        upload_bytes: of a device, on average. raw_bytes: likewise of its raw data.
        even_at: training samples of a device from which on its upload is less than its raw data;
            none where it is already, or samples are not known.
    """

    expected: int
    lost: dict[str, str]
    too_large: list[str]
    fullest: tuple[DeviceSummary, float] | None
    rivals: list[Rival]
    worst: DeviceSummary | None
    smallest: int
    largest: int
    latency_s: float
    upload_bytes: float
    raw_bytes: float
    even_at: int | None

    @staticmethod
    def of(summary: Summary) -> Facts:
        """Gather them; a run in which nobody finished has zeros."""
        devices, traffic = summary.devices, summary.traffic
        lost = {name: why for c in summary.clusters for name, why in c.lost.items()}
        sizes = [device.size_bytes for device in devices] or [0]
        count = len(devices) or 1
        fullest = max(devices, key=_share_used, default=None)
        expected = {d.name for d in devices} | lost.keys() | summary.sent.keys()
        return Facts(
            expected=len(expected),
            lost=lost,
            too_large=[d.name for d in devices if d.size_bytes > d.capacity_bytes],
            fullest=None if fullest is None else (fullest, _share_used(fullest)),
            rivals=_rivals(summary),
            worst=min(devices, key=lambda device: device.accuracy, default=None),
            smallest=min(sizes),
            largest=max(sizes),
            latency_s=median(device.latency_s for device in devices) if devices else 0.0,
            upload_bytes=traffic.device_up_bytes / count,
            raw_bytes=traffic.raw_data_bytes / count,
            even_at=_even_at(summary),
        )


def _share_used(device: DeviceSummary) -> float:
    return device.size_bytes / device.capacity_bytes


def _rivals(summary: Summary) -> list[Rival]:
    devices, probe = summary.devices, summary.probe
    found: list[tuple[str, list[float | None], int | None]] = [
        ("ours", [d.accuracy for d in devices], None),
        ("whole", [d.accuracy_reference for d in devices], summary.reference.size_bytes),
        ("linear", [d.accuracy_linear for d in devices], None),
    ]
    if probe is not None:
        size = probe.size_bytes_int8
        found += [
            ("alone", [d.accuracy_probe for d in devices], size),
            ("averaged", [d.accuracy_probe_averaged for d in devices], size),
        ]
    known = [(name, [v for v in values if v is not None], size) for name, values, size in found]
    return [Rival(name, fmean(values), size) for name, values, size in known if values]


def _even_at(summary: Summary) -> int | None:
    """Samples from which on the mean upload is less than a device's raw data."""
    samples = sum(d.train_samples + d.validation_samples for d in summary.devices)
    traffic = summary.traffic
    if not samples or not traffic.raw_data_bytes or traffic.upload_ratio <= 1:
        return None
    each = traffic.raw_data_bytes / samples
    return math.ceil(traffic.device_up_bytes / len(summary.devices) / each)


# --- classes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassFacts:
    """A class over all devices: how many have it, samples, and what it is taken for."""

    name: str
    devices: int
    train: int
    test: int
    right: int
    taken_for: tuple[str, int] | None


def class_facts(devices: Iterable[DeviceSummary]) -> list[ClassFacts]:
    """One for each class, in the order of their names; of very many those with most mistakes."""
    holders, train = Counter[str](), Counter[str]()
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for device in devices:
        for name, own in device.classes.items():
            holders[name] += own.train > 0
            train[name] += own.train
            answers[name].update(own.answers)
    found = [_class_facts(n, holders[n], train[n], answers[n]) for n in sorted(answers)]
    most = sorted(found, key=lambda one: one.right - one.test)[:_MOST_CLASSES]
    return [one for one in found if one in most]


def _class_facts(name: str, holders: int, train: int, answers: Counter[str]) -> ClassFacts:
    wrong = Counter({answer: count for answer, count in answers.items() if answer != name})
    most = wrong.most_common(1)
    return ClassFacts(
        name, holders, train, answers.total(), answers[name], most[0] if most else None
    )


def confusion(devices: Iterable[DeviceSummary]) -> tuple[list[str], list[list[int]]]:
    """The classes, and for each (a row) how often it got which answer (a column)."""
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for device in devices:
        for name, own in device.classes.items():
            for answer, count in own.answers.items():
                counts[name, answer] += count
    names = sorted({name for pair in counts for name in pair})
    return names, [[counts.get((row, column), 0) for column in names] for row in names]


def confusions(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: class, answer, count."""
    wrong = [
        (names[i], names[j], count)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(wrong, key=lambda one: -one[2])[:_MOST_CONFUSIONS]


# --- a fleet that is too large to list -----------------------------------------------------------


@dataclass(frozen=True)
class ClusterFacts:
    """A cluster in a row: its devices, their accuracies and sizes, and what they share."""

    cluster: ClusterSummary
    devices: int
    accuracy: float
    lowest: float
    reference: float | None
    smallest: int
    largest: int


def cluster_facts(summary: Summary) -> list[ClusterFacts]:
    """One for each cluster with a device that finished."""
    members: defaultdict[str, list[DeviceSummary]] = defaultdict(list)
    for device in summary.devices:
        members[device.cluster].append(device)
    return [
        ClusterFacts(
            cluster=cluster,
            devices=len(own),
            accuracy=fmean(d.accuracy for d in own),
            lowest=min(d.accuracy for d in own),
            reference=_mean_known([d.accuracy_reference for d in own]),
            smallest=min(d.size_bytes for d in own),
            largest=max(d.size_bytes for d in own),
        )
        for cluster in summary.clusters
        if (own := members[cluster.name])
    ]


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def listed_devices(devices: Sequence[DeviceSummary]) -> list[DeviceSummary]:
    """Those that are described one by one: all, or those with the lowest accuracies."""
    if len(devices) <= MOST_LISTED:
        return list(devices)
    return sorted(devices, key=lambda device: device.accuracy)[:LEAST_LISTED]


def tabled_devices(devices: Sequence[DeviceSummary]) -> list[DeviceSummary]:
    """Those in the table: all, or those that exceed their limits or have the lowest accuracies."""
    if len(devices) <= MOST_ROWS:
        return list(devices)
    order = sorted(devices, key=lambda d: (d.size_bytes <= d.capacity_bytes, d.accuracy))
    return order[:MOST_ROWS]
