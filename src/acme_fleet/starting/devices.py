"""Devices that `acme init` knows, and their constants of Eq. 1-2 for a reference's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from acme_fleet.config.base import Settings
from acme_fleet.config.devices import Name, Precisions, check_name, parse_bytes
from acme_fleet.config.yaml_file import read_yaml
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed, one_line
from acme_fleet.starting.shape import Shape

DEFAULT_TYPE = "raspberry-pi-5"
_FILE = Path(__file__).with_name("device_types.yaml")
_MOST = 10_000
_ITEM = re.compile(r"(?:(?P<name>[^=:]+)=)?(?P<type>[^=:]+)(?::(?P<count>\d+))?")
_NUMBER = re.compile(r"\d+")
_STORAGE = re.compile(r"\d+(\.\d+)?[kmg]i?b", re.IGNORECASE)
_Positive = Annotated[float, Field(gt=0)]


class DeviceType(Settings):
    """A kind of device, with the basis of its numbers."""

    title: str
    """Its name for people."""
    device: Name
    """First part of the names of such devices."""
    storage: str
    """Storage for a model that is suggested, as a fleet file has it."""
    precisions: Precisions
    """Precisions of weights that runtimes on it execute."""
    busy_w: _Positive
    """Watts while it computes."""
    gflops: _Positive
    """10⁹ operations a second in matrix products."""
    basis: str
    """The origin of the numbers, in words."""
    runs_artifacts: bool = True
    """A runtime of ``acme export`` is for it; without one it is a kind to plan with."""

    def energy(self, shape: Shape) -> dict[str, float]:
        """Constants of Eq. 1-2: busy power at any size, latency by the operations of a shape."""
        rate = self.gflops * 1e9
        return {
            "power_w": self.busy_w,
            "power_per_layer_w": 0,
            "batch_power_w": 0,
            "latency_s": _rounded(shape.embedding_flops / rate),
            "latency_per_layer_s": _rounded(shape.layer_flops / rate),
        }


@dataclass(frozen=True)
class Wanted:
    """Devices of one type, by name."""

    kind: str
    of: DeviceType
    names: tuple[str, ...]


def device_types() -> dict[str, DeviceType]:
    """The types that are known, by name."""
    return TypeAdapter(dict[str, DeviceType]).validate_python(read_yaml(_FILE, "device types"))


def wanted_devices(text: str) -> list[Wanted]:
    """Devices from ``--devices``, type by type.

    Args:
        text: a number of devices of the type :data:`DEFAULT_TYPE`; or a list of ``TYPE``,
            ``TYPE:NUMBER``, ``NAME=TYPE`` and ``NAME=TYPE:NUMBER``, with commas. A type may be a
            storage, such as ``20MB``, of a device with the costs of :data:`DEFAULT_TYPE`.

    Raises:
        FleetError: naming the part that is wrong.
    """
    known, names = device_types(), dict[str, list[str]]()
    if _NUMBER.fullmatch(text.strip()):
        text = f"{DEFAULT_TYPE}:{text.strip()}"
    for part in text.split(","):
        match = _ITEM.fullmatch(part.strip())
        if match is None:
            raise FleetError(
                f"--devices: {part.strip()!r} is no TYPE, TYPE:NUMBER or NAME=TYPE; such as "
                f"--devices 6, or --devices {DEFAULT_TYPE}:4,door=android-phone,gateway=20MB:2"
            )
        _add(names, match, known)
    return [Wanted(kind, _type(kind, known), tuple(own)) for kind, own in names.items()]


def about_devices(devices: Sequence[Wanted]) -> list[str]:
    """A line on each type: its storage, and if no runtime is for it."""
    lines = []
    for each in devices:
        named = listed(list(each.names), 3)
        several = " of each" * (len(each.names) > 1)
        told = f"{named}: {each.of.title}, {each.of.storage} for the model{several}"
        if len(each.names) == 1 < len(devices):
            told += "; alone in its cluster, it learns from no other: name more of its kind"
        if not each.of.runs_artifacts:
            told += "; no runtime of `acme export` is for it: it is a kind to plan with"
        lines.append(told)
    if all(_STORAGE.fullmatch(each.kind) for each in devices):
        return lines
    return [*lines, "storage is yours to change in the file, or --devices NAME=20MB:4"]


def _type(kind: str, known: Mapping[str, DeviceType]) -> DeviceType:
    """A type that is known, or one of this storage with the costs of the default one.

    Raises:
        FleetError: if it is neither.
    """
    if not _STORAGE.fullmatch(kind):
        if kind in known:
            return known[kind]
        raise FleetError(
            f"--devices: there is no {one_line(kind, 60)!r}; choose one of "
            f"{', '.join(sorted(known))}, or a storage such as 20MB"
        )
    if not parse_bytes(kind):
        raise FleetError(f"--devices: {kind} is no room for a model")
    like = known[DEFAULT_TYPE]
    return like.model_copy(
        update={
            "title": f"a device with the speed and power of a {like.title}",
            "device": "device",
            "storage": kind,
        }
    )


def _add(
    names: dict[str, list[str]], match: re.Match[str], known: Mapping[str, DeviceType]
) -> None:
    kind, name, count = match["type"].replace(" ", ""), match["name"], int(match["count"] or 1)
    of = _type(kind, known)
    own = names.setdefault(kind, [])
    if not 1 <= count + sum(map(len, names.values())) <= _MOST or not count:
        raise FleetError(f"--devices: give 1 to {_MOST:,} devices")
    if name is None:
        added = [f"{of.device}-{len(own) + number}" for number in range(1, count + 1)]
    elif match["count"]:
        added = [f"{name.strip()}-{number}" for number in range(1, count + 1)]
    else:
        added = [name.strip()]
    try:
        own += map(check_name, added)
    except ValueError as error:
        raise FleetError(f"--devices: {match[0].strip()!r}: {error}") from error
    taken = [each for every in names.values() for each in every]
    if len(set(taken)) < len(taken):
        raise FleetError(f"--devices: {match[0].strip()!r}: a name is for one device")


def storage_bytes(of: DeviceType) -> int:
    """The storage that is suggested, in bytes."""
    return int(parse_bytes(of.storage))


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.3g}")
