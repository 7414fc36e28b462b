"""For which of a cluster's devices one backbone is chosen: for all, or for each kind (Eq. 10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from acme_fleet.hardware import Energy, Part

Limits = tuple[int, Energy]
"""C_n in bytes and the energy constants of a device."""


def whole(limits: Iterable[Limits]) -> Part:
    """All as one part: the smallest storage, every distinct set of energy constants."""
    storages, energies = zip(*limits, strict=True)
    distinct = list(dict.fromkeys(energies))
    return Part(storage_bytes=min(storages), energies=distinct, devices=len(storages))


def kinds(limits: Mapping[str, Limits]) -> list[tuple[Part, list[str]]]:
    """A part for each distinct pair of storage and constants, and its devices; smallest first."""
    members: dict[Limits, list[str]] = {}
    for name, own in sorted(limits.items(), key=lambda item: item[1][0]):
        members.setdefault(own, []).append(name)
    return [(whole([own] * len(names)), names) for own, names in members.items()]
