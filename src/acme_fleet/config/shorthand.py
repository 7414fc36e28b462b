"""Shorthand of fleet files written out: constants of device types, and clusters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PositiveInt, ValidationError

from acme_fleet.config.base import Settings, mistakes, read_settings
from acme_fleet.config.devices import Device, Energy, Name
from acme_fleet.config.grouping import group_devices
from acme_fleet.config.yaml_file import read_yaml
from acme_fleet.errors import FleetError
from acme_fleet.outside import resolved

_MEASURED = ("power_w", "power_per_layer_w", "latency_s", "latency_per_layer_s")


class Grouping(Settings):
    """The clusters that ``devices`` fall into."""

    clusters: PositiveInt | None = None
    """Number of clusters; none lets the silhouette decide."""


class _Part(Settings):
    """A part of a fleet file; the other keys are checked with the whole fleet."""

    model_config = ConfigDict(extra="ignore")


class _Types(_Part):
    device_types: dict[Name, Path] = {}
    """Profile of each device type, a path relative to the fleet file."""


class _FlatFleet(_Part):
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the grouping, that of the fleet."""
    devices: Annotated[list[Device], Field(min_length=1)]
    """Devices to be grouped."""
    grouping: Grouping = Grouping()
    """Number of groups."""


def written_out(content: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """The same content with ``clusters``, and without ``type``, ``devices`` and ``grouping``.

    Args:
        content: a fleet file's.
        where: its name, for errors.
        folder: what the paths of profiles are relative to.

    Raises:
        FleetError: if a type or its profile is wrong, or the devices cannot be grouped.
        ValidationError: if a key that is needed here is wrong.
    """
    constants = {name: read_constants(folder / path) for name, path in _types(content).items()}
    content = _change_devices(content, lambda device: _with_constants(device, constants, where))
    content.pop("device_types", None)
    if ("clusters" in content) == ("devices" in content):
        raise FleetError(f"{where}: give either `clusters`, or `devices` to be grouped into some")
    if "clusters" in content:
        if "grouping" in content:
            raise FleetError(f"{where}: grouping: is for `devices` without clusters; remove it")
        return content
    flat = _FlatFleet.model_validate(content)
    try:
        clusters = group_devices(flat.devices, flat.grouping.clusters, flat.seed)
    except ValueError as error:
        raise FleetError(f"{where}: grouping.clusters: {error}") from error
    rest = {key: value for key, value in content.items() if key not in ("devices", "grouping")}
    return {**rest, "clusters": clusters}


def profiles_of(path: Path) -> dict[str, Path]:
    """The profiles of a fleet file's device types, by type.

    Raises:
        FleetError: if it cannot be read.
    """
    content = read_settings(path, "fleet file", "`acme init` writes an example")
    try:
        types = _types(content)
    except ValidationError as error:
        raise FleetError(mistakes(error, str(path), _Types)) from error
    return {name: resolved(path.parent / profile) for name, profile in types.items()}


def _types(content: Mapping[str, Any]) -> dict[str, Path]:
    known = {key: content[key] for key in ("device_types",) if key in content}
    return _Types.model_validate(known).device_types


def read_constants(profile: Path) -> dict[str, float]:
    """The constants of Eq. 1-2 that a profile holds; not all, if no power could be measured.

    Raises:
        FleetError: if the file cannot be read or is no profile.
    """
    content = read_yaml(profile, "profile")
    constants = content.get("energy") if isinstance(content, dict) else None
    if not isinstance(constants, dict):
        raise FleetError(f"{profile} is no profile that `acme profile` wrote: it has no `energy`")
    try:
        Energy.model_validate(constants)
    except ValidationError as error:
        raise FleetError(mistakes(error, f"{profile}: energy", Energy)) from error
    return constants


def _change_devices(content: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Change every device, wherever it stands; what is malformed stays for the fleet's checks."""

    def changed(place: Any) -> Any:
        if isinstance(place, dict) and isinstance(place.get("devices"), list):
            return {**place, "devices": [change(device) for device in place["devices"]]}
        return place

    result = changed(dict(content))
    if isinstance(result.get("clusters"), list):
        result["clusters"] = [changed(cluster) for cluster in result["clusters"]]
    return result


def _with_constants(device: Any, constants: Mapping[str, Mapping[str, float]], where: str) -> Any:
    """A device with its type's constants in place of ``type``; its own ones come first."""
    if not isinstance(device, dict) or "type" not in device:
        return device
    name, kind = device.get("name"), device["type"]
    if not isinstance(kind, str) or kind not in constants:
        known = ", ".join(constants) or "none"
        raise FleetError(f"{where}: device {name}: type {kind!r} is not in device_types ({known})")
    rest = {key: value for key, value in device.items() if key != "type"}
    own = rest.get("energy", {})
    if not isinstance(own, dict):
        return rest
    energy = {**constants[kind], **own}
    if missing := [key for key in _MEASURED if key not in energy]:
        raise FleetError(
            f"{where}: device {name}: the profile of type {kind!r} has no {', '.join(missing)}; "
            f"give it in the device's `energy`, or measure again with --tdp or --meter"
        )
    return {**rest, "energy": energy}
