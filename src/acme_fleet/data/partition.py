"""Partition of the samples over the cloud, the edge servers and the devices, without overlap."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from acme_fleet.config.devices import Cluster, Device
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.checkpoint_images import read_normalization
from acme_fleet.data.classes import check_known
from acme_fleet.data.datasets import (
    Listed,
    Prepared,
    Preprocessing,
    Source,
    Undecoded,
    check_images,
    decoded,
    list_source,
    load_own,
    open_source,
    read_own,
)
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.raw import RawSamples
from acme_fleet.data.samples import Samples, Splits, stratified_split
from acme_fleet.data.shares import (
    Indices,
    Labels,
    Shares,
    Three,
    data_generator,
    own_parts,
    share_out,
)
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line

_EDGE_PARTS = 4  # two quarters to train on, one for rewards, one to choose on


class Holdings(Protocol):
    """Private and shared data, decoded by the preprocessing that comes with a model."""

    def splits(self, device: str, classes: Sequence[str], preprocessing: Preprocessing) -> Splits:
        """A device's own samples; labels are places in ``classes``."""
        ...

    def samples(
        self, cluster: str, classes: Sequence[str], preprocessing: Preprocessing
    ) -> Samples:
        """An edge server's own samples; labels are places in ``classes``."""
        ...


@dataclass(frozen=True)
class World:
    """Everybody's samples. No sample is in two places.

    Attributes:
        shared: each edge server's own, by cluster name.
        private: each device's, by device name. Its test samples are of its own distribution.
        classes: the classes' names, in the order of the labels.
        preprocessing: how an image or text file becomes a sample.
        vocabulary: numbers that the tokens have in the checkpoint, where it is cut to some.
        owners: whose samples a device has, by its name, where a column says so.
    """

    shared: dict[str, Samples]
    private: dict[str, Splits]
    classes: list[str]
    preprocessing: Preprocessing
    _public: Splits | None
    vocabulary: list[int] | None = None
    owners: dict[str, str] = field(default_factory=dict)

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

    def splits(self, device: str, classes: Sequence[str], preprocessing: Preprocessing) -> Splits:
        """A device's samples, see :class:`Holdings`: here they are decoded already."""
        return self.private[device]

    def samples(
        self, cluster: str, classes: Sequence[str], preprocessing: Preprocessing
    ) -> Samples:
        """An edge server's samples, see :class:`Holdings`: here they are decoded already."""
        return self.shared[cluster]


def load_world(fleet: Fleet, only: Collection[str] | None = None) -> World:
    """Load a fleet's data, prepared as its reference takes them, and share them out.

    With ``only``, no data of edge servers and devices but those named are decoded. The cloud's own
    are decoded on its own host, where ``only`` is empty, and where everybody is.

    Raises:
        FleetError: if data or the reference's preprocessing cannot be read, see :func:`distribute`.
    """
    checkpoint, revision = fleet.reference.checkpoint, fleet.reference.revision
    if checkpoint is None:
        known = None
    elif fleet.data.holds_texts:
        kind = LanguagePreprocessing if fleet.data.source == "language" else TextPreprocessing
        known = kind.of_checkpoint(checkpoint, fleet.data.max_tokens, revision)
        if fleet.backbone.vocabulary is not None:
            return _with_vocabulary(fleet, known, fleet.backbone.vocabulary, only)
    else:
        known = read_normalization(checkpoint, revision)
    return distribute(fleet, open_source(fleet.data, known), only)


def _with_vocabulary(
    fleet: Fleet, known: TextPreprocessing, size: int, only: Collection[str] | None
) -> World:
    """Everybody's texts in the tokens of a smaller vocabulary, that of the public texts."""
    kept = public_vocabulary(fleet, known, size)
    world = distribute(fleet, open_source(fleet.data, known.cut(kept)), only)
    return replace(world, vocabulary=kept)


def public_vocabulary(fleet: Fleet, known: TextPreprocessing, size: int) -> list[int]:
    """Numbers of the tokens that a run keeps, those of the public texts first.

    Raises:
        FleetError: as :func:`load_world`.
    """
    public = distribute(fleet, open_source(fleet.data, known), []).public
    return known.kept_tokens([public.train, public.validation], size)


def distribute(
    fleet: Fleet, source: Source | Prepared, only: Collection[str] | None = None
) -> World:
    """Share out a data set over cloud, edge servers and devices, as ``fleet.seed`` decides.

    First the cloud's public share is taken, unless it has its own data. The rest is dealt to the
    devices without own data, test samples by the same shares as train samples. Of each device's
    train samples a part moves to its edge server, unless that has its own, such that its are
    ``edge_share`` of what devices keep.

    Args:
        fleet: its data settings and its seed decide who holds what.
        source: the data set. Of a :class:`Prepared` one, samples that nobody takes here are not
            decoded, and no other more than once.
        only: see :func:`load_world`.

    Raises:
        FleetError: naming the device or cluster whose data are missing, unknown or too few.
    """
    shares = share_out(fleet, Labels.of(source))
    check_shares(shares, only)
    public = _public(fleet, source, shares) if not only else None
    shared: dict[str, Samples] = {}
    private: dict[str, Splits] = {}
    for cluster in fleet.clusters:
        if only is None or cluster.name in only:
            if cluster.data is None:
                shared[cluster.name] = _at(source.train, shares.edges[cluster.name])
            else:
                own = load_own(cluster.data, fleet.data, source, _whose(cluster))
                _check_edge(cluster.name, own)
                shared[cluster.name] = own
        for device in cluster.devices:
            if only is not None and device.name not in only:
                continue
            if device.data is None:
                private[device.name] = _taken(source, shares.devices[device.name])
            else:
                own = load_own(device.data, fleet.data, source, _whose(device))
                private[device.name] = _own_splits(fleet, device.name, own)
    of = source.classes, source.preprocessing, public
    return World(shared, private, *of, owners=shares.owners)


def raw_bytes(splits: Splits) -> int:
    """Bytes of the train and validation samples as stored: what a centralised system uploads."""
    return int(splits.train.stored_bytes.sum() + splits.validation.stored_bytes.sum())


@dataclass(frozen=True)
class HostData:
    """Data of one edge server or device on a host of its own.

    What lies at a path of its own is all that is read. Without one, it has a share of the fleet's
    data set: labels and owners of all samples are read, which decide whose each sample is. Samples
    are made when classes and preprocessing have come with the model, and none of anybody else's.
    """

    fleet: Fleet
    name: str
    source: RawSamples | Listed

    @staticmethod
    def read(fleet: Fleet, name: str) -> HostData:
        """Read what the host of an edge server or device needs.

        Raises:
            FleetError: naming the path, file, image or column that is wrong, or whose data are too
                few.
        """
        holder = next(each for each in (*fleet.clusters, *fleet.devices) if each.name == name)
        if holder.data is None:
            listed = list_source(fleet.data)
            check_shares(share_out(fleet, Labels.of(listed)), [name])
            return HostData(fleet, name, listed)
        own = read_own(holder.data, fleet.data, _whose(holder))
        check_images(own)
        if isinstance(holder, Device):
            _check_device(name, own_parts(fleet, name, own.labels))
        else:
            _check_edge(name, own.labels)
        if isinstance(fleet.data.classes, list):
            check_known(own, fleet.data.classes)
        return HostData(fleet, name, own)

    def splits(self, device: str, classes: Sequence[str], preprocessing: Preprocessing) -> Splits:
        """The device's samples, see :class:`Holdings`.

        Raises:
            FleetError: naming the class that is unknown, or the sample that cannot be decoded.
        """
        if isinstance(self.source, Listed):
            return self._share(self.source, classes, preprocessing).private[device]
        own = decoded(self.source, list(classes), preprocessing)
        return _own_splits(self.fleet, device, own)

    def samples(
        self, cluster: str, classes: Sequence[str], preprocessing: Preprocessing
    ) -> Samples:
        """The edge server's samples, see :class:`Holdings`.

        Raises:
            FleetError: as :meth:`splits`.
        """
        if isinstance(self.source, Listed):
            return self._share(self.source, classes, preprocessing).shared[cluster]
        return decoded(self.source, list(classes), preprocessing)

    def _share(self, listed: Listed, classes: Sequence[str], preprocessing: Preprocessing) -> World:
        if listed.classes != list(classes):
            raise FleetError(
                f"data.train: the model that was sent tells {len(classes)} classes apart, from "
                f"{one_line(classes[0], 60)} on; here are {len(listed.classes)} others or in "
                f"another order, from {one_line(listed.classes[0], 60)} on; all hosts that share "
                f"the data set need the same files"
            )
        return distribute(self.fleet, Prepared(listed, preprocessing), [self.name])


def _taken(source: Source | Prepared, three: Three) -> Splits:
    """Samples of a data set, decoded where they were not."""
    train, validation, test = three
    return Splits(_at(source.train, train), _at(source.train, validation), _at(source.test, test))


def _public(fleet: Fleet, source: Source | Prepared, shares: Shares) -> Splits:
    """The cloud's samples.

    Its own data without labels have no test part: there is nothing to report on them.
    """
    data = fleet.data
    if isinstance(data.public, Path):
        generator = data_generator(fleet, "public")
        own = load_own(data.public, data, source, "data.public", label_optional=True)
        rest, test = _split(own, data.test_share, generator) if own.labelled else (own, own[:0])
        train, validation = _split(rest, data.validation, generator)
        _check_cloud((train, validation, test), tested=own.labelled)
        return Splits(train, validation, test)
    assert shares.public is not None
    return _taken(source, shares.public)


def _own_splits(fleet: Fleet, device: str, own: Samples) -> Splits:
    """A device's own data, cut in three."""
    parts = own_parts(fleet, device, own.strata)
    _check_device(device, parts)
    return Splits(*(_at(own, part) for part in parts))


def _whose(holder: Cluster | Device) -> str:
    """The setting of a holder's own data, for error messages."""
    return f"{'cluster' if isinstance(holder, Cluster) else 'device'} {holder.name}: data"


def check_shares(shares: Shares, only: Collection[str] | None) -> None:
    """Refuse shares of a data set that leave somebody nothing to train, choose or report on.

    With ``only``, shares of edge servers and devices but those named may be anything, and those of
    the cloud too where somebody is named.

    Raises:
        FleetError: naming the one who has too few samples.
    """
    if not only and shares.public is not None:
        _check_cloud(shares.public, tested=True)
    for name, parts in shares.devices.items():
        if only is None or name in only:
            _check_device(name, parts)
    for name, part in shares.edges.items():
        if only is None or name in only:
            _check_edge(name, part)


def _check_cloud(parts: tuple[Sized, Sized, Sized], *, tested: bool) -> None:
    """Refuse public data of which a part is empty; without labels there is nothing to test."""
    _check_parts("the cloud", [len(part) for part in parts], tested=tested)


def _check_device(name: str, parts: tuple[Sized, Sized, Sized]) -> None:
    """Refuse a device's data of which the training, validation or test part is empty."""
    _check_parts(f"device {name}", [len(part) for part in parts], tested=True)


def _check_parts(name: str, sizes: list[int], *, tested: bool) -> None:
    if 0 in (sizes if tested else sizes[:2]):
        raise FleetError(
            f"{name} has {sizes[0]} train, {sizes[1]} validation and {sizes[2]} test samples, "
            f"and needs some of each; use more samples, fewer devices, or other values of "
            f"`data.public`, `data.validation` and `data.partition`"
        )


def _check_edge(name: str, samples: Sized) -> None:
    """Refuse too few samples of an edge server."""
    if len(samples) < _EDGE_PARTS:
        raise FleetError(
            f"cluster {name}: its edge server has {len(samples)} samples and needs "
            f"{_EDGE_PARTS} or more; raise `data.edge_share`, or give its devices more samples"
        )


def _split(
    samples: Samples, share: float, generator: np.random.Generator
) -> tuple[Samples, Samples]:
    left, taken = stratified_split(samples.strata, share, generator)
    return _at(samples, left), _at(samples, taken)


def _at(samples: Samples | Undecoded, index: Indices) -> Samples:
    return samples[torch.from_numpy(index)]
