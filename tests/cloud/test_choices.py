"""Parts of a cluster, and which candidate each of them gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.cloud.choices import Candidates, choose_for
from acme_fleet.cloud.objectives import Grid, Quality
from acme_fleet.config.backbone import Selection
from acme_fleet.config.devices import Energy, Part
from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.edge.parts import kinds, whole
from acme_fleet.errors import FleetError
from acme_fleet.selection.choice import match

_WIDTHS, _DEPTHS = np.array([0.5, 0.5, 1.0, 1.0]), np.array([1, 2, 1, 2])
_CANDIDATES = Candidates(
    grid=Grid(_WIDTHS, _DEPTHS),
    quality=Quality(losses=np.array([1.0, 0.8, 0.9, 0.5]), scores=np.zeros(4)),
    sizes=np.array([10, 20, 30, 40]),
    tokens=16,
)
_LIMITS = st.tuples(
    st.integers(10, 50), st.sampled_from([Energy(), Energy(power_w=0.1), Energy(latency_s=1)])
)
_DEVICES = st.dictionaries(st.sampled_from("abcdefgh"), _LIMITS, min_size=1)


@given(_DEVICES)
def test_a_kind_is_the_devices_with_the_same_limits(limits: dict[str, tuple[int, Energy]]):
    parts = kinds(limits)
    assert sorted(name for _, names in parts for name in names) == sorted(limits)
    for part, names in parts:
        assert {limits[name] for name in names} == {(part.storage_bytes, part.energies[0])}
        assert part.devices == len(names)
    assert len({(p.storage_bytes, p.energies[0]) for p, _ in parts}) == len(parts)
    assert [p.storage_bytes for p, _ in parts] == sorted(p.storage_bytes for p, _ in parts)


@given(_DEVICES)
def test_the_whole_has_the_least_storage_and_all_constants(limits: dict[str, tuple[int, Energy]]):
    part = whole(limits.values())
    assert part.storage_bytes == min(storage for storage, _ in limits.values())
    assert {*part.energies} == {energy for _, energy in limits.values()}
    assert part.devices == len(limits)


@given(_DEVICES)
def test_each_part_gets_what_it_would_get_alone(limits: dict[str, tuple[int, Energy]]):
    parts = [part for part, _ in kinds(limits)]
    settings = Selection(performance_window=0.3)
    choices = choose_for(_CANDIDATES, {"north": parts}, settings)
    assert sorted(number for choice in choices for number in choice.parts) == [*range(len(parts))]
    assert len({choice.selection.chosen for choice in choices}) == len(choices)
    for choice in choices:
        assert choice.storage_bytes == min(parts[n].storage_bytes for n in choice.parts)
        for number in choice.parts:
            part = parts[number]
            energies = worst_energy_j(part.energies, _WIDTHS, _DEPTHS, 16)
            table = np.column_stack([_CANDIDATES.quality.losses, energies, _CANDIDATES.sizes])
            alone = match(table, _CANDIDATES.sizes, part.storage_bytes, 0.3, cluster="alone")
            assert choice.selection.chosen == alone.chosen
            assert _CANDIDATES.sizes[choice.selection.chosen] <= part.storage_bytes


def test_a_part_that_nothing_fits_is_named_by_its_cluster():
    parts = [Part(storage_bytes=9, energies=[Energy()], devices=1)]
    with pytest.raises(FleetError, match=r"'south'.*is 10 bytes and the limit is 9 bytes"):
        choose_for(_CANDIDATES, {"south": parts}, Selection())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_candidate_without_a_number_is_left_out_and_the_others_go_on(value: float):
    """As if the grid had never had it; places stay those of the whole table."""
    part = Part(storage_bytes=50, energies=[Energy()], devices=1)
    for bad in range(4):
        losses = _CANDIDATES.quality.losses.copy()
        losses[bad] = value
        left = np.delete(np.arange(4), bad)
        broken = replace(_CANDIDATES, quality=Quality(losses, np.zeros(4)))
        whole_grid = Candidates(
            grid=Grid(_WIDTHS[left], _DEPTHS[left]),
            quality=Quality(losses[left], np.zeros(3)),
            sizes=_CANDIDATES.sizes[left],
            tokens=16,
        )
        (found,) = choose_for(broken, {"north": [part]}, Selection())
        (expected,) = choose_for(whole_grid, {"north": [part]}, Selection())
        assert found.selection.chosen == left[expected.selection.chosen]
        assert found.selection.feasible.tolist() == left[expected.selection.feasible].tolist()
        assert found.selection.front.tolist() == left[expected.selection.front].tolist()


def test_no_candidate_with_a_number_is_told():
    broken = replace(_CANDIDATES, quality=Quality(np.full(4, np.nan), np.zeros(4)))
    part = Part(storage_bytes=50, energies=[Energy()], devices=1)
    with pytest.raises(FleetError, match="'north': no candidate has a finite loss"):
        choose_for(broken, {"north": [part]}, Selection())
