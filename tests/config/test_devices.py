"""``type: pi4`` at a device: the constants of a profile, written out when the fleet is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from acme_fleet.config.devices import Energy
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError

CONSTANTS = {
    "power_w": 3.0,
    "power_per_layer_w": 0.25,
    "batch_power_w": 0.0,
    "latency_s": 0.004,
    "latency_per_layer_s": 0.002,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    write(tmp_path / "profiles" / "pi4.yaml", {"energy": CONSTANTS, "machine": {"cores": 4}})
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content))


def read(folder: Path, device: dict[str, Any], **changes: Any) -> Fleet:
    listed = [{"name": "a", "storage": "1 MB", **device}, {"name": "b", "storage": "1 MB"}]
    content = {
        "device_types": {"pi4": "profiles/pi4.yaml"},
        "clusters": [{"name": "north", "devices": listed}],
        **changes,
    }
    write(folder / "fleet.yaml", content)
    return Fleet.from_yaml(folder / "fleet.yaml")


def test_constants_come_from_the_profile_beside_the_fleet_file(folder: Path) -> None:
    fleet = read(folder, {"type": "pi4"})
    assert fleet.devices[0].energy == Energy.model_validate(CONSTANTS)
    assert fleet.devices[1].energy == Energy()


def test_a_devices_own_constants_come_first(folder: Path) -> None:
    energy = read(folder, {"type": "pi4", "energy": {"power_w": 9, "epochs": 5}}).devices[0].energy
    assert (energy.power_w, energy.epochs, energy.latency_s) == (9, 5, 0.004)


def test_flat_devices_have_types_too(folder: Path) -> None:
    fleet = Fleet.parse(
        {
            "device_types": {"pi4": "pi4.yaml"},
            "devices": [{"name": "a", "storage": 5, "type": "pi4"}],
        },
        folder=folder / "profiles",
    )
    assert fleet.devices[0].energy.power_w == 3.0


def test_what_is_written_needs_no_profile(folder: Path, tmp_path: Path) -> None:
    fleet = read(folder, {"type": "pi4"})
    (folder / "profiles" / "pi4.yaml").unlink()
    (tmp_path / "resolved.yaml").write_text(fleet.to_yaml())
    assert Fleet.from_yaml(tmp_path / "resolved.yaml") == fleet


def test_types_without_devices_of_them_are_fine(folder: Path) -> None:
    assert read(folder, {}).devices[0].energy == Energy()


PROFILES: dict[str, tuple[Any, str]] = {
    "no mapping": (["a"], "is no profile that `acme profile` wrote"),
    "no energy": ({"machine": {}}, "is no profile that `acme profile` wrote: it has no `energy`"),
    "empty": (None, "is no profile that `acme profile` wrote"),
    "energy is a number": ({"energy": 3}, "is no profile that `acme profile` wrote"),
    "unknown constant": ({"energy": {"watts": 3}}, "energy: watts: unknown key"),
    "negative constant": ({"energy": {"power_w": -3}}, "energy: power_w: Input should be greater"),
    "no power": (
        {"energy": {"latency_s": 1, "latency_per_layer_s": 1}},
        "device a: the profile of type 'pi4' has no power_w, power_per_layer_w; give it in the "
        "device's `energy`, or measure again with --tdp or --meter",
    ),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_profile_that_is_none(folder: Path, kind: str) -> None:
    content, words = PROFILES[kind]
    write(folder / "profiles" / "pi4.yaml", content)
    with pytest.raises(FleetError) as refusal:
        read(folder, {"type": "pi4"})
    assert words in str(refusal.value)


def test_power_that_was_not_measured_may_be_given(folder: Path) -> None:
    measured = {key: value for key, value in CONSTANTS.items() if "power" not in key}
    write(folder / "profiles" / "pi4.yaml", {"energy": measured})
    own = {"power_w": 1.0, "power_per_layer_w": 0.1}
    assert read(folder, {"type": "pi4", "energy": own}).devices[0].energy.latency_s == 0.004


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown type": (
        {"type": "pi5"},
        {},
        "fleet.yaml: device a: type 'pi5' is not in device_types (pi4)",
    ),
    "no types": ({"type": "pi4"}, {"device_types": {}}, "is not in device_types (none)"),
    "types are a list": ({}, {"device_types": ["pi4"]}, "device_types: Input should be a valid di"),
    "missing profile": (
        {},
        {"device_types": {"pi4": "none.yaml"}},
        "none.yaml: no such file or folder",
    ),
    "profile is a folder": ({}, {"device_types": {"pi4": "profiles"}}, "cannot read the profile"),
    "energy is a number": ({"type": "pi4", "energy": 3}, {}, "clusters.0.devices.0.energy: Input"),
    "type is a list": ({"type": ["pi4"]}, {}, "type ['pi4'] is not in device_types"),
    "unknown key": ({"type": "pi4", "ram": 3}, {}, "clusters.0.devices.0.ram: unknown key"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(folder: Path, mistake: str) -> None:
    device, changes, words = MISTAKES[mistake]
    with pytest.raises(FleetError) as refusal:
        read(folder, device, **changes)
    assert words in str(refusal.value)


@pytest.mark.parametrize("devices", [None, 3, "cam", [None, 3], {"a": 1}])
def test_malformed_devices_are_left_to_the_fleets_checks(folder: Path, devices: Any) -> None:
    for content in ({"devices": devices}, {"clusters": [{"name": "n", "devices": devices}]}):
        with pytest.raises(FleetError, match="devices"):
            Fleet.parse({"device_types": {"pi4": "pi4.yaml"}, **content}, folder=folder)
    with pytest.raises(FleetError, match="clusters"):
        Fleet.parse({"clusters": [devices]})
