"""A flat list of devices becomes clusters: the same ones each time, and sensible ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_fleet.config.devices import Cluster, Device, Energy
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.grouping import capabilities, group_devices, partition
from acme_fleet.errors import FleetError

FAST, SLOW = Energy(power_w=4, latency_s=0.002), Energy(power_w=0.5, latency_s=0.1)


def devices(*storages: int, energy: Energy = FAST, prefix: str = "d") -> list[Device]:
    return [
        Device(name=f"{prefix}-{n}", storage=size, energy=energy) for n, size in enumerate(storages)
    ]


def members(clusters: list[Cluster]) -> list[list[str]]:
    return [[device.name for device in cluster.devices] for cluster in clusters]


MIXED = [
    *devices(900, 1000, 950, prefix="big"),
    *devices(30, 33, 31, 29, energy=SLOW, prefix="small"),
    *devices(300, 310, prefix="middle"),
]


def test_features_are_logarithms_in_units_of_their_spread() -> None:
    features = capabilities(devices(100, 1000, 10_000))
    np.testing.assert_allclose(features[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    np.testing.assert_array_equal(features[:, 1:], 0)  # what all have in common says nothing
    in_kilobytes = [d.model_copy(update={"storage": d.storage * 1000}) for d in MIXED]
    np.testing.assert_allclose(capabilities(in_kilobytes), capabilities(MIXED), atol=1e-12)


def test_constants_of_zero_are_no_obstacle() -> None:
    nothing = Energy(power_w=0, power_per_layer_w=0, batch_power_w=0, latency_s=0)
    assert np.isfinite(capabilities([*devices(5), *devices(5, energy=nothing)])).all()


def test_silhouette_finds_the_kinds_of_devices() -> None:
    clusters = group_devices(MIXED, None, seed=0)
    assert [cluster.name for cluster in clusters] == ["group-1", "group-2", "group-3"]
    assert members(clusters) == [
        ["big-0", "big-1", "big-2"],
        ["middle-0", "middle-1"],
        ["small-0", "small-1", "small-2", "small-3"],
    ]


def test_capability_alone_separates() -> None:
    same_storage = [*devices(500, 500, 500), *devices(500, 500, energy=SLOW, prefix="slow")]
    assert members(group_devices(same_storage, None, seed=0)) == [
        ["d-0", "d-1", "d-2"],
        ["slow-0", "slow-1"],
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5, len(MIXED)])
def test_a_given_number_is_kept(count: int) -> None:
    clusters = group_devices(MIXED, count, seed=0)
    assert len(clusters) == count
    everyone = [name for names in members(clusters) for name in names]
    assert sorted(everyone) == sorted(device.name for device in MIXED)
    limits = [min(device.storage for device in cluster.devices) for cluster in clusters]
    assert limits == sorted(limits, reverse=True)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_order_of_the_list_changes_nothing(seed: int) -> None:
    shuffled = random.Random(seed).sample(MIXED, len(MIXED))
    expected = [set(names) for names in members(group_devices(MIXED, None, seed))]
    assert [set(names) for names in members(group_devices(shuffled, None, seed))] == expected


@pytest.mark.parametrize("storages", [(7,), (7, 7), (7, 9000), (7, 7, 7), (10, 100, 1000)])
def test_few_or_equal_or_evenly_spread_devices_are_one_group(storages: tuple[int, ...]) -> None:
    assert len(group_devices(devices(*storages), None, seed=0)) == 1


def test_one_of_three_may_stand_apart() -> None:
    assert members(group_devices(devices(10, 1000, 11), None, 0)) == [["d-1"], ["d-0", "d-2"]]


def test_two_are_split_when_asked() -> None:
    assert members(group_devices(devices(10, 1000), 2, seed=0)) == [["d-1"], ["d-0"]]


def test_more_groups_than_kinds_of_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups of devices, of which only 2 differ"):
        group_devices(devices(10, 10, 20, 20), 3, seed=0)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=12), st.integers(0, 2**33))
def test_every_device_is_in_one_group(storages: list[int], seed: int) -> None:
    features = capabilities(devices(*storages))
    labels = partition(features, None, seed)
    np.testing.assert_array_equal(labels, partition(features, None, seed))
    assert labels.shape == (len(storages),)
    assert set(labels.tolist()) == set(range(labels.max() + 1))


# --- in the fleet file ------------------------------------------------------------------------


def flat(**changes: Any) -> dict[str, Any]:
    listed = [{"name": d.name, "storage": d.storage} for d in MIXED]
    return {"seed": 3, "devices": listed, **changes}


def test_flat_fleet_repeats_from_what_is_written(tmp_path: Path) -> None:
    fleet = Fleet.parse(flat(grouping={"clusters": 3}))
    assert [cluster.name for cluster in fleet.clusters] == ["group-1", "group-2", "group-3"]
    written = yaml.safe_load(fleet.to_yaml())
    assert not {"devices", "grouping"} & written.keys()
    (tmp_path / "fleet.yaml").write_text(fleet.to_yaml())
    assert Fleet.from_yaml(tmp_path / "fleet.yaml") == fleet


def test_data_of_flat_devices_are_relative_to_the_file(tmp_path: Path) -> None:
    content = flat()
    content["devices"][0]["data"] = "own.npz"
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(content))
    by_name = {device.name: device for device in Fleet.from_yaml(tmp_path / "fleet.yaml").devices}
    assert by_name["big-0"].data == tmp_path / "own.npz"
    assert by_name["big-1"].data is None


CLUSTER = {"name": "north", "devices": [{"name": "a", "storage": 1}]}
MISTAKES = {
    "neither": ({}, "give either `clusters`, or `devices`"),
    "both": (flat(clusters=[CLUSTER]), "give either `clusters`, or `devices`"),
    "grouping of clusters": (
        {"clusters": [CLUSTER], "grouping": {"clusters": 2}},
        "grouping: is for `devices` without clusters; remove it",
    ),
    "no devices": ({"devices": []}, "devices: List should have at least 1 item"),
    "too many groups": (
        flat(grouping={"clusters": 10}),
        "grouping.clusters: 10 groups of devices, of which only 9 differ",
    ),
    "no groups": (flat(grouping={"clusters": 0}), "grouping.clusters: Input should be greater"),
    "unknown key": (flat(grouping={"number": 2}), "grouping.number: unknown key"),
    "unknown key of a device": (
        {"devices": [{"name": "a", "storage": 1, "ram": 2}]},
        "devices.0.ram: unknown key",
    ),
    "bad storage": ({"devices": [{"name": "a", "storage": "1 elk"}]}, "devices.0.storage: '1 elk'"),
    "bad seed": (flat(seed=-1), "seed: Input should be greater than or equal to 0"),
    "elsewhere": (flat(search={"steps": 0}), "search.steps: Input should be greater than 0"),
    "two of one name": (
        {"devices": [{"name": "a", "storage": 1}, {"name": "a", "storage": 1}]},
        "used more than once: a",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gets_one_line(mistake: str) -> None:
    content, words = MISTAKES[mistake]
    with pytest.raises(FleetError) as refusal:
        Fleet.parse(content)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("fleet: ")
