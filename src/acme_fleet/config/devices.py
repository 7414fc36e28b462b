"""Devices with their storage and energy constants, and clusters of devices."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from acme_fleet.config.base import Settings
from acme_fleet_runtime.manifest import DEVICE_NAME

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(value: Any) -> Any:
    """Read a storage size: a number of bytes, or text such as ``"400 kB"`` or ``"2 MiB"``.

    Raises:
        ValueError: if the text is not a number followed by a known unit.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]+)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write bytes, or a number with kB, MB, KiB, MiB")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def check_name(value: str) -> str:
    """A cluster's or device's name, which is part of file names, as it is.

    Raises:
        ValueError: if it is none.
    """
    if not DEVICE_NAME.fullmatch(value):
        raise ValueError(
            "a name has 1 to 64 letters, digits, '.', '_' or '-', and a letter or digit first"
        )
    return value


ByteSize = Annotated[int, Field(gt=0, le=2**53), BeforeValidator(parse_bytes)]
Name = Annotated[str, AfterValidator(check_name)]

Precision = Literal["int4", "int8", "float16", "float32"]
"""Numbers that weights are stored in, the smallest first (METHOD 11)."""

# Bounded, so that no device's constants make its cluster's energy infinite.
Constant = Annotated[float, Field(ge=0, le=1e9)]


Precisions = Annotated[
    tuple[Precision, ...],
    Field(min_length=1, max_length=8),
    AfterValidator(lambda listed: common([listed])),
]
"""Some of them, the smallest first."""


def common(runtimes: Iterable[Collection[Precision]]) -> tuple[Precision, ...]:
    """The precisions that all of these runtimes execute, the smallest first."""
    known = list(runtimes)
    return tuple(each for each in get_args(Precision) if all(each in own for own in known))


class Energy(Settings):
    """Constants of Eq. 1-2 for one device, at batch size β."""

    power_w: Constant = 2.0
    """G, watts without layers."""
    power_per_layer_w: Constant = 0.5
    """ΔG, watts that each layer adds at full width."""
    batch_power_w: Constant = 0.01
    """G^β, watts that each patch adds."""
    latency_s: Constant = 0.01
    """L, seconds without layers."""
    latency_per_layer_s: Constant = 0.005
    """ΔL, seconds that each layer adds at full width."""
    latency_per_depth_s: Constant = 0.0
    """ΔD, seconds that each layer adds at any width; 0 is Eq. 2."""
    float16: Constant = 1.0
    """Latency of the layers in float16, as a share of that in float32."""
    int8: Constant = 1.0
    """Latency of the layers in int8, as a share of that in float32."""
    int4: Constant = 1.0
    """Latency of the layers in int4, as a share of that in float32."""
    epochs: Annotated[int, Field(ge=1, le=10**9)] = 1
    """Epochs k that the energy is for."""


class Part(Settings):
    """Devices of a cluster for which one backbone is chosen, as numbers without names (Eq. 10)."""

    storage_bytes: Annotated[int, Field(ge=1, le=2**53)]
    """Smallest storage of the devices in bytes."""
    energies: Annotated[list[Energy], Field(min_length=1, max_length=10_000)]
    """Distinct energy constants of the devices; the worst decides."""
    precisions: Precisions
    """Those that the runtimes of all devices execute."""
    devices: Annotated[int, Field(ge=1, le=2**53)]
    """Number of devices."""


class Device(Settings):
    """One device n: its storage C_n, its energy constants and, optionally, its own data."""

    name: Name
    """Name of the device, unique in the fleet."""
    storage: ByteSize
    """C_n, storage for the model: bytes, or text such as ``400 kB`` or ``2 MiB``."""
    energy: Energy = Energy()
    """Energy constants of the device."""
    precisions: Precisions = ("int8", "float32")
    """Precisions of weights that the device's runtime executes."""
    runs_artifacts: bool = True
    """A runtime of ``acme export`` is for the device; without one its model is to plan with."""
    data: Path | None = None
    """File or folder of the device's samples; none: it gets some by ``data.partition``."""


class Cluster(Settings):
    """One edge server s and its devices N_s."""

    name: Name
    """Name of the cluster, unique in the fleet."""
    devices: Annotated[list[Device], Field(min_length=1)]
    """Devices of the cluster, N_s."""
    data: Path | None = None
    """File or folder of the edge server's samples; none: it gets some by ``data.edge_share``."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that all its devices execute, the smallest first."""
        return common(device.precisions for device in self.devices)


def group_name(cluster: str, parts: int, chosen: Sequence[int]) -> str:
    """A group of devices: the cluster's name, and a number where the group is not the whole of it.

    Args:
        cluster: its name. parts: how many its profile has. chosen: the numbers of the group's.
    """
    return f"{cluster}:{1 + min(chosen)}" if len(chosen) < parts else cluster
