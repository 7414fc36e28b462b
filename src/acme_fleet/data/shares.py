"""Indices of a data set's samples by holder, from labels, owners and the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Shaped

from acme_fleet.config.data import IID, Dirichlet, Natural, Pathological
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import Listed, Prepared, Source, strata
from acme_fleet.data.samples import stratified_split
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed
from acme_fleet.seeding import derive_seed

Indices = Int64[np.ndarray, " _"]
Parts = dict[str, Indices]
"""Indices of samples by name."""
Three = tuple[Indices, Indices, Indices]
"""Indices of training, validation and test samples."""


@dataclass(frozen=True)
class Labels:
    """Labels and owners of a data set: all that decides whose each sample is."""

    train: np.ndarray
    test: np.ndarray
    train_groups: np.ndarray | None
    test_groups: np.ndarray | None
    classes: list[str]

    @staticmethod
    def of(source: Source | Prepared | Listed) -> Labels:
        """Labels and owners of a data set, decoded or not."""
        if isinstance(source, Prepared):
            source = source.listed
        if isinstance(source, Listed):
            train, test = source.train, source.test
            return Labels(train.labels, test.labels, train.groups, test.groups, source.classes)
        return Labels(
            source.train.labels.numpy(),
            source.test.labels.numpy(),
            source.train_groups,
            source.test_groups,
            source.classes,
        )


@dataclass(frozen=True)
class Shares:
    """Indices of samples of a data set by holder; nobody shares a sample.

    Attributes:
        public: the cloud's samples; none where it has data of its own.
        edges: each edge server's train samples, by cluster name.
        devices: each device's samples, by its name.
        owners: whose samples a device has, by its name, where a column says so.
    """

    public: Three | None
    edges: Parts
    devices: dict[str, Three]
    owners: dict[str, str]


def share_out(fleet: Fleet, labels: Labels) -> Shares:
    """Share out the samples of a data set, see :func:`acme_fleet.data.partition.distribute`.

    Raises:
        FleetError: naming the cluster, column or scheme that does not go with the data set.
    """
    for cluster in fleet.clusters:
        if cluster.data is None and all(device.data for device in cluster.devices):
            raise FleetError(
                f"cluster {cluster.name}: all its devices bring their own data, which never leave "
                f"them; name a file or folder for the edge server in the cluster's `data`"
            )
    public, validation = None, fleet.data.validation
    rests = np.arange(len(labels.train)), np.arange(len(labels.test))
    if not isinstance(fleet.data.public, Path):
        generator = data_generator(fleet, "public")
        (train_rest, train), (test_rest, test) = (
            stratified_split(strata(each, groups), fleet.data.public, generator)
            for each, groups in (
                (labels.train, labels.train_groups),
                (labels.test, labels.test_groups),
            )
        )
        public = *_cut(labels.train, train, validation, generator), test
        rests = train_rest, test_rest
    train_parts, test_parts, owners = _deal(fleet, labels, rests)
    edges, train_parts = _lend(fleet, train_parts, labels)
    devices: dict[str, Three] = {}
    for name, part in train_parts.items():
        generator = data_generator(fleet, name, "splits")
        devices[name] = *_cut(labels.train, part, validation, generator), test_parts[name]
    return Shares(public, edges, devices, owners)


def _cut(
    labels: Int[np.ndarray, " samples"],
    part: Indices,
    share: float,
    generator: np.random.Generator,
) -> tuple[Indices, Indices]:
    """A part of the samples cut in two in proportion of its classes; ``share`` is the second."""
    left, taken = stratified_split(labels[part], share, generator)
    return part[left], part[taken]


def own_parts(fleet: Fleet, device: str, labels: Int[np.ndarray, " samples"]) -> Three:
    """Indices of the three parts of a device's own data."""
    generator = data_generator(fleet, device, "splits")
    rest, test = _cut(labels, np.arange(len(labels)), fleet.data.test_share, generator)
    return *_cut(labels, rest, fleet.data.validation, generator), test


def class_shares(
    partition: IID | Pathological | Dirichlet,
    devices: int,
    classes: Sequence[str],
    generator: np.random.Generator,
) -> Float[np.ndarray, "devices classes"]:
    """Draw what share of each class's samples each device holds.

    Returns:
        A column sums to 1, or to 0 for a class that nobody holds.

    Raises:
        FleetError: if the scheme asks for classes that do not exist.
    """
    if isinstance(partition, Dirichlet):
        shares = generator.dirichlet([partition.alpha] * len(classes), size=devices)
        # For a small alpha the draws of a class may all underflow: its devices are then equal.
        shares[:, shares.sum(axis=0) < np.finfo(float).tiny] = 1
    elif isinstance(partition, Pathological):
        held = (
            _drawn_classes(partition.classes_per_device or 0, devices, len(classes), generator)
            if partition.classes is None
            else _named_classes(partition.classes, devices, classes)
        )
        shares = held.astype(float)
    else:
        shares = np.ones((devices, len(classes)))
    return shares / np.maximum(shares.sum(axis=0), np.finfo(float).tiny)


def allocate(
    labels: Int[np.ndarray, " samples"],
    shares: Float[np.ndarray, "holders classes"],
    generator: np.random.Generator,
) -> list[Indices]:
    """Deal out samples so that every holder gets its share of every class.

    Each class is shuffled and cut at the cumulated shares; one random offset rounds, so that a
    holder's count differs from its share by less than one sample and on average not at all.

    Args:
        labels: the class of each sample.
        shares: see :func:`class_shares`.
        generator: decides which samples go where.

    Returns:
        For each holder sorted indices. Each sample is in one, if anybody holds its class.
    """
    parts: list[list[Indices]] = [[] for _ in shares]
    for label, column in enumerate(shares.T):
        members = generator.permutation(np.flatnonzero(labels == label))
        offset = generator.random()
        if column.sum() == 0:
            continue
        # Divided by its own last entry the sum ends at exactly 1 and the last cut at the end.
        ends = np.cumsum(column) / np.cumsum(column)[-1]
        cuts = np.floor(ends * len(members) + offset).astype(int)
        for part, chosen in zip(parts, np.split(members, cuts[:-1]), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate([np.empty(0, np.int64), *part])) for part in parts]


def _deal(
    fleet: Fleet, labels: Labels, rests: tuple[np.ndarray, np.ndarray]
) -> tuple[Parts, Parts, dict[str, str]]:
    """Each drawing device's train and test indices, out of ``rests``, and their owner."""
    data = fleet.data
    drawing = [device.name for device in fleet.devices if device.data is None]
    names = drawing if data.dealt_to is None else data.dealt_to
    if strangers := [name for name in drawing if name not in names]:
        raise FleetError(
            f"device {strangers[0]}: data.dealt_to deals the data set to other devices; name a "
            f"file or folder of its own in the device's `data`"
        )
    if not drawing:
        return {}, {}, {}
    owners: dict[str, str] = {}
    if isinstance(data.partition, Natural):
        groups, column = (labels.train_groups, labels.test_groups), data.partition.column
        values = _owners(groups, names, column)
        owners = {name: str(value) for name, value in zip(names, values, strict=True)}
        parts = tuple(
            [rest[group[rest] == value] for value in values]
            for group, rest in zip(groups, rests, strict=True)
            if group is not None
        )
    else:
        generator = data_generator(fleet, "partition")
        shares = class_shares(data.partition, len(names), labels.classes, generator)
        parts = tuple(
            [rest[part] for part in allocate(each[rest], shares, generator)]
            for each, rest in zip((labels.train, labels.test), rests, strict=True)
        )
    dealt = [dict(zip(names, part, strict=True)) for part in parts]
    train_parts, test_parts = ({name: part[name] for name in drawing} for part in dealt)
    return train_parts, test_parts, {name: owners[name] for name in drawing if name in owners}


def _owners(
    groups: tuple[Shaped[np.ndarray, " train"] | None, Shaped[np.ndarray, " test"] | None],
    names: Sequence[str],
    column: str,
) -> Sequence[object]:
    """Each device's value of the column: its own name where devices are named so, else in order."""
    if groups[0] is None or groups[1] is None:
        raise FleetError(f"data.partition: the data set has no column {column!r}")
    if groups[0].dtype != groups[1].dtype:
        raise FleetError(
            f"data.partition: column {column!r} holds numbers in one of `data.train` and "
            f"`data.test`, text in the other"
        )
    values = np.unique(groups[0])
    if len(values) < len(names):
        raise FleetError(
            f"data.partition: column {column!r} has {len(values)} values for {len(names)} devices"
        )
    by_name = {str(value): value for value in values}
    named = [name for name in names if name in by_name]
    if not named:
        return list(values[: len(names)])
    if others := [name for name in names if name not in by_name]:
        raise FleetError(
            f"data.partition: device {named[0]} is named as a value of column {column!r}, and "
            f"{others[0]} is not: name all devices as their values, or none; there are "
            f"{listed(list(by_name), 6)}"
        )
    return [by_name[name] for name in names]


def _lend(fleet: Fleet, parts: Parts, labels: Labels) -> tuple[Parts, Parts]:
    """Move some train indices of each device to its edge server.

    Returns:
        Each edge server's indices by cluster name, and what is left to each device by its name.
    """
    share = fleet.data.edge_share / (1 + fleet.data.edge_share)
    edges: Parts = {}
    kept = dict(parts)
    for cluster in fleet.clusters:
        if cluster.data is not None:
            continue
        taken = []
        for name in [device.name for device in cluster.devices if device.data is None]:
            generator = data_generator(fleet, name, "lent")
            left, lent = stratified_split(labels.train[parts[name]], share, generator)
            kept[name] = parts[name][left]
            taken.append(parts[name][lent])
        edges[cluster.name] = np.concatenate(taken)
    return edges, kept


def _drawn_classes(
    each: int, devices: int, classes: int, generator: np.random.Generator
) -> Bool[np.ndarray, "devices classes"]:
    """Classes of each device: each takes the classes held least."""
    if each > classes:
        raise FleetError(
            f"data.partition: classes_per_device is {each}, the data set has {classes} classes"
        )
    held = np.zeros((devices, classes), dtype=bool)
    for device in held:
        least_held_first = np.lexsort((generator.random(classes), held.sum(axis=0)))
        device[least_held_first[:each]] = True
    return held


def _named_classes(
    lists: list[list[str]], devices: int, classes: Sequence[str]
) -> Bool[np.ndarray, "devices classes"]:
    """Classes of each device, the lists taken in turn."""
    unknown = sorted({name for names in lists for name in names} - set(classes))
    if unknown:
        raise FleetError(
            f"data.partition: unknown classes {', '.join(unknown)}; "
            f"the data set has {', '.join(classes)}"
        )
    if len(lists) > devices:
        raise FleetError(f"data.partition: {len(lists)} lists of classes for {devices} devices")
    return np.array([[name in lists[i % len(lists)] for name in classes] for i in range(devices)])


def data_generator(fleet: Fleet, *purpose: str) -> np.random.Generator:
    """The generator of one decision about the data."""
    return np.random.default_rng(derive_seed(fleet.seed, "data", *purpose))
