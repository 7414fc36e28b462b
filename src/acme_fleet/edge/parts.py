"""Devices of a cluster that share a backbone: all, or those of each kind (Eq. 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from acme_fleet.config.devices import Energy, Part, Precision, common, group_name
from acme_fleet.seeding import generator

Limits = tuple[int, Energy, tuple[Precision, ...]]
"""C_n in bytes, the energy constants and the precisions of a device."""


def whole(limits: Iterable[Limits]) -> Part:
    """All as one part: the smallest storage, every distinct set of energy constants, and the
    precisions that all execute.
    """
    storages, energies, precisions = zip(*limits, strict=True)
    return Part(
        storage_bytes=min(storages),
        energies=list(dict.fromkeys(energies)),
        precisions=common(precisions),
        devices=len(storages),
    )


def kinds(limits: Mapping[str, Limits]) -> list[tuple[Part, list[str]]]:
    """A part for each distinct set of limits, and its devices; smallest first."""
    members: dict[Limits, list[str]] = {}
    for name, own in sorted(limits.items(), key=lambda item: item[1][0]):
        members.setdefault(own, []).append(name)
    return [(whole([own] * len(names)), names) for own, names in members.items()]


def folder_of(group: str, folder: Path) -> Path:
    """The folder of a group by its name; ``folder`` is the cluster's."""
    _, _, number = group.partition(":")
    return folder / f"group-{number}" if number else folder


@dataclass(frozen=True)
class Group:
    """Devices of the cluster that share a backbone and a coarse header.

    Attributes:
        name: the cluster's, and a number where the cluster has several groups.
        members: the devices.
        strangers: devices that are in no group; their loss is told with the first one.
        limit: min C_n in bytes.
        folder: what was finished for them.
    """

    name: str
    members: list[str]
    strangers: list[str]
    limit: int
    folder: Path

    @staticmethod
    def choose(
        cluster: str,
        parts: Sequence[tuple[Part, list[str]]],
        chosen: Sequence[int],
        everyone: Iterable[str],
        folder: Path,
    ) -> Group:
        """The devices of the parts with the ``chosen`` numbers; ``folder`` is the cluster's."""
        own = [parts[number] for number in chosen]
        name, number = group_name(cluster, len(parts), chosen), 1 + min(chosen)
        known = {name for _, names in parts for name in names}
        return Group(
            name=name,
            members=[name for _, names in own for name in names],
            strangers=[name for name in everyone if number == 1 and name not in known],
            limit=min(part.storage_bytes for part, _ in own),
            folder=folder_of(name, folder),
        )

    def generators(self, seed: int) -> Callable[[str], torch.Generator]:
        """Generators of the group's header search, by purpose."""
        return lambda purpose: generator(seed, self.name, "header", purpose)
