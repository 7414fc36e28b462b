"""Partition of the samples over the cloud, the edge servers and the devices, without overlap."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped

from acme_fleet.config.data import IID, Dirichlet, Natural, Pathological
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.checkpoint_images import read_normalization
from acme_fleet.data.datasets import Preprocessing, Source, load_own, load_source, strata
from acme_fleet.data.samples import Samples, Splits, stratified_split
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.seeding import derive_seed

_EDGE_PARTS = 4  # two quarters to train on, one for rewards, one to choose on
Indices = Int64[np.ndarray, " _"]
Parts = dict[str, Indices]  # by name, indices of samples


@dataclass(frozen=True)
class World:
    """Everybody's samples. No sample is in two places.

    Attributes:
        shared: each edge server's own, by cluster name.
        private: each device's, by device name. Its test samples are of its own distribution.
        classes: the classes' names, in the order of the labels.
        preprocessing: how an image or text file becomes a sample.
    """

    shared: dict[str, Samples]
    private: dict[str, Splits]
    classes: list[str]
    preprocessing: Preprocessing
    _public: Splits | None

    @property
    def public(self) -> Splits:
        """The cloud's; the reference is trained, and backbones are chosen, on them.

        Raises:
            ValueError: on the host of an edge server or device, which does not read the cloud's
                own data.
        """
        if self._public is None:
            raise ValueError("the cloud's own data were asked for where they are not read")
        return self._public


def load_world(fleet: Fleet, only: Collection[str] | None = None) -> World:
    """Load a fleet's data, prepared as its reference takes them, and share them out.

    With ``only``, no data of edge servers and devices but those named are read. The cloud's own
    data are read on its own host, where ``only`` is empty, and where everybody is.

    Raises:
        FleetError: if data or the reference's preprocessing cannot be read, see :func:`distribute`.
    """
    checkpoint, revision = fleet.reference.checkpoint, fleet.reference.revision
    if checkpoint is None:
        known = None
    elif fleet.data.source == "text":
        known = TextPreprocessing.of_checkpoint(checkpoint, fleet.data.max_tokens, revision)
    else:
        known = read_normalization(checkpoint, revision)
    return distribute(fleet, load_source(fleet.data, known), only)


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


def distribute(fleet: Fleet, source: Source, only: Collection[str] | None = None) -> World:
    """Share out a data set over cloud, edge servers and devices, as ``fleet.seed`` decides.

    First the cloud's public share is taken, unless it has its own data. The rest is dealt to the
    devices without own data, test samples by the same shares as train samples. Of each device's
    train samples a part moves to its edge server, unless that has its own, such that its are
    ``edge_share`` of what devices keep.

    Raises:
        FleetError: naming the device or cluster whose data are missing, unknown or too few.
    """
    for cluster in fleet.clusters:
        if cluster.data is None and all(device.data for device in cluster.devices):
            raise FleetError(
                f"cluster {cluster.name}: all its devices bring their own data, which never leave "
                f"them; name a file or folder for the edge server in the cluster's `data`"
            )
    public, rests = _public(fleet, source, here=not only)
    train_parts, test_parts = _deal(fleet, source, rests)
    edge_parts, train_parts = _lend(fleet, train_parts, source)
    shared: dict[str, Samples] = {}
    private: dict[str, Splits] = {}
    for cluster in fleet.clusters:
        if only is None or cluster.name in only:
            shared[cluster.name] = (
                _at(source.train, edge_parts[cluster.name])
                if cluster.data is None
                else load_own(cluster.data, fleet.data, source, f"cluster {cluster.name}: data")
            )
        for device in cluster.devices:
            if only is not None and device.name not in only:
                continue
            generator = _generator(fleet, device.name, "splits")
            if device.data is None:
                rest = _at(source.train, train_parts[device.name])
                test = _at(source.test, test_parts[device.name])
            else:
                own = load_own(device.data, fleet.data, source, f"device {device.name}: data")
                rest, test = _split(own, fleet.data.test_share, generator)
            private[device.name] = Splits(*_split(rest, fleet.data.validation, generator), test)
    _check_sizes(public, shared, private)
    return World(shared, private, source.classes, source.preprocessing, public)


def raw_bytes(splits: Splits) -> int:
    """Bytes of the train and validation samples as stored: what a centralised system uploads."""
    return int(splits.train.stored_bytes.sum() + splits.validation.stored_bytes.sum())


def _public(
    fleet: Fleet, source: Source, *, here: bool
) -> tuple[Splits | None, tuple[np.ndarray, np.ndarray]]:
    """The cloud's samples, and the train and test indices that it leaves to others.

    Its own data without labels have no test part: there is nothing to report on them.

    Args:
        fleet, source: see :func:`distribute`.
        here: its own data are read; without them it has no samples.
    """
    data, generator = fleet.data, _generator(fleet, "public")
    if isinstance(data.public, Path):
        everything = np.arange(len(source.train)), np.arange(len(source.test))
        if not here:
            return None, everything
        own = load_own(data.public, data, source, "data.public", label_optional=True)
        rest, test = _split(own, data.test_share, generator) if own.labelled else (own, own[:0])
        return Splits(*_split(rest, data.validation, generator), test), everything
    (train_rest, train), (test_rest, test) = (
        stratified_split(strata(samples.labels.numpy(), groups), data.public, generator)
        for samples, groups in (
            (source.train, source.train_groups),
            (source.test, source.test_groups),
        )
    )
    parts = _split(_at(source.train, train), data.validation, generator)
    return Splits(*parts, _at(source.test, test)), (train_rest, test_rest)


def _deal(
    fleet: Fleet, source: Source, rests: tuple[np.ndarray, np.ndarray]
) -> tuple[Parts, Parts]:
    """Each drawing device's train and test indices, out of ``rests``, by its name."""
    data = fleet.data
    labels = source.train.labels.numpy(), source.test.labels.numpy()
    names = [device.name for device in fleet.devices if device.data is None]
    if not names:
        return {}, {}
    if isinstance(data.partition, Natural):
        groups = source.train_groups, source.test_groups
        parts = _by_group(groups, rests, len(names), data.partition.column)
    else:
        generator = _generator(fleet, "partition")
        shares = class_shares(data.partition, len(names), source.classes, generator)
        parts = tuple(
            [rest[part] for part in allocate(labels_[rest], shares, generator)]
            for labels_, rest in zip(labels, rests, strict=True)
        )
    train_parts, test_parts = (dict(zip(names, part, strict=True)) for part in parts)
    return train_parts, test_parts


def _by_group(
    groups: tuple[Shaped[np.ndarray, " train"] | None, Shaped[np.ndarray, " test"] | None],
    rests: tuple[Indices, Indices],
    devices: int,
    column: str,
) -> tuple[list[Indices], ...]:
    """For train and test, each device's indices: those with its value of the column."""
    if groups[0] is None or groups[1] is None:
        raise FleetError(f"data.partition: the data set has no column {column!r}")
    if groups[0].dtype != groups[1].dtype:
        raise FleetError(
            f"data.partition: column {column!r} holds numbers in one of `data.train` and "
            f"`data.test`, text in the other"
        )
    values = np.unique(groups[0])
    if len(values) < devices:
        raise FleetError(
            f"data.partition: column {column!r} has {len(values)} values for {devices} devices"
        )
    return tuple(
        [rest[group[rest] == value] for value in values[:devices]]
        for group, rest in zip((groups[0], groups[1]), rests, strict=True)
    )


def _lend(fleet: Fleet, parts: Parts, source: Source) -> tuple[Parts, Parts]:
    """Move some train indices of each device to its edge server.

    Returns:
        Each edge server's indices by cluster name, and what is left to each device by its name.
    """
    share = fleet.data.edge_share / (1 + fleet.data.edge_share)
    labels = source.train.labels.numpy()
    edges: Parts = {}
    kept = dict(parts)
    for cluster in fleet.clusters:
        if cluster.data is not None:
            continue
        taken = []
        for name in [device.name for device in cluster.devices if device.data is None]:
            generator = _generator(fleet, name, "lent")
            left, lent = stratified_split(labels[parts[name]], share, generator)
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


def _check_sizes(
    public: Splits | None, shared: dict[str, Samples], private: dict[str, Splits]
) -> None:
    """Refuse a world in which somebody has nothing to train, choose or report on."""
    holders = {f"device {name}": splits for name, splits in private.items()}
    if public is not None:
        holders = {"the cloud": public, **holders}
    for name, splits in holders.items():
        sizes = len(splits.train), len(splits.validation), len(splits.test)
        if 0 in (sizes if splits.labelled else sizes[:2]):
            raise FleetError(
                f"{name} has {sizes[0]} train, {sizes[1]} validation and {sizes[2]} test samples, "
                f"and needs some of each; use more samples, fewer devices, or other values of "
                f"`data.public`, `data.validation` and `data.partition`"
            )
    for name, samples in shared.items():
        if len(samples) < _EDGE_PARTS:
            raise FleetError(
                f"cluster {name}: its edge server has {len(samples)} samples and needs "
                f"{_EDGE_PARTS} or more; raise `data.edge_share`, or give its devices more samples"
            )


def _split(
    samples: Samples, share: float, generator: np.random.Generator
) -> tuple[Samples, Samples]:
    labels = samples.labels.numpy() if samples.labelled else np.zeros(len(samples), np.int64)
    left, taken = stratified_split(labels, share, generator)
    return _at(samples, left), _at(samples, taken)


def _at(samples: Samples, index: Indices) -> Samples:
    return samples[torch.from_numpy(index)]


def _generator(fleet: Fleet, *purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(fleet.seed, "data", *purpose))
