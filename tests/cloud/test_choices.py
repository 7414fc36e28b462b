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
from acme_fleet.config.devices import Energy, Part, Precision
from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.cost.variant import Variant
from acme_fleet.edge.parts import Limits, kinds, whole
from acme_fleet.errors import FleetError
from acme_fleet.selection.choice import executed_sizes, match

# The last three differ in the hidden size or the precision alone.
_VARIANTS = (
    Variant(0.5, 1),
    Variant(0.5, 2),
    Variant(1.0, 2, 0.5),
    Variant(1.0, 2),
    Variant(1.0, 2, precision="int8"),
)
_WORK, _DEPTHS = np.array([0.5, 0.5, 0.5, 1.0, 1.0]), np.array([1, 2, 2, 2, 2])
_RUNTIMES: list[tuple[Precision, ...]] = [("float32",), ("int8", "float32")]
_CANDIDATES = Candidates(
    grid=Grid(_VARIANTS),
    quality=Quality(losses=np.array([1.0, 0.8, 0.9, 0.5, 0.6]), scores=np.zeros(5)),
    sizes=np.array([10, 20, 30, 40, 25]),
    tokens=16,
)
_LIMITS = st.tuples(
    st.integers(10, 50),
    st.sampled_from([Energy(), Energy(power_w=0.1), Energy(latency_s=1, int8=0.25)]),
    st.sampled_from(_RUNTIMES),
)
_DEVICES = st.dictionaries(st.sampled_from("abcdefgh"), _LIMITS, min_size=1)


@given(_DEVICES)
def test_a_kind_is_the_devices_with_the_same_limits(limits: dict[str, Limits]):
    parts = kinds(limits)
    assert sorted(name for _, names in parts for name in names) == sorted(limits)
    for part, names in parts:
        own = part.storage_bytes, part.energies[0], part.precisions
        assert {limits[name] for name in names} == {own}
        assert part.devices == len(names)
    assert len({(p.storage_bytes, p.energies[0], p.precisions) for p, _ in parts}) == len(parts)
    assert [p.storage_bytes for p, _ in parts] == sorted(p.storage_bytes for p, _ in parts)


@given(_DEVICES)
def test_the_whole_has_the_least_storage_and_all_constants(limits: dict[str, Limits]):
    part = whole(limits.values())
    assert part.storage_bytes == min(storage for storage, *_ in limits.values())
    assert {*part.energies} == {energy for _, energy, _ in limits.values()}
    alike = all("int8" in precisions for *_, precisions in limits.values())
    assert part.precisions == (("int8", "float32") if alike else ("float32",))
    assert part.devices == len(limits)


@given(_DEVICES)
def test_each_part_gets_what_it_would_get_alone(limits: dict[str, Limits]):
    parts = [part for part, _ in kinds(limits)]
    settings = Selection(performance_window=0.3)
    choices = choose_for(_CANDIDATES, {"north": parts}, settings)
    assert sorted(number for choice in choices for number in choice.parts) == [*range(len(parts))]
    assert len({choice.selection.chosen for choice in choices}) == len(choices)
    for choice in choices:
        assert choice.storage_bytes == min(parts[n].storage_bytes for n in choice.parts)
        for number in choice.parts:
            part = parts[number]
            precisions = _CANDIDATES.grid.precisions
            energies = worst_energy_j(part.energies, _WORK, _DEPTHS, 16, precisions)
            table = np.column_stack([_CANDIDATES.quality.losses, energies, _CANDIDATES.sizes])
            sizes = executed_sizes(_CANDIDATES.sizes, precisions, part.precisions, "alone")
            alone = match(table, sizes, part.storage_bytes, 0.3, cluster="alone")
            assert choice.selection.chosen == alone.chosen
            assert precisions[choice.selection.chosen] in part.precisions
            assert _CANDIDATES.sizes[choice.selection.chosen] <= part.storage_bytes


@given(_DEVICES, st.integers(0, 4))
def test_a_part_keeps_what_it_has_as_long_as_that_fits(limits: dict[str, Limits], row: int):
    part, settings, has = whole(limits.values()), Selection(), _VARIANTS[row]
    (anew,) = choose_for(_CANDIDATES, {"north": [part]}, settings)
    (found,) = choose_for(_CANDIDATES, {"north": [part]}, settings, {("north", 0): has})
    fits = row in anew.selection.feasible
    assert found.selection.chosen == (row if fits else anew.selection.chosen)
    assert (found.selection.feasible == anew.selection.feasible).all()
    for other in ({("south", 0): has}, {("north", 1): has}, {("north", 0): Variant(0.1, 9)}):
        (same,) = choose_for(_CANDIDATES, {"north": [part]}, settings, other)
        assert same.selection.chosen == anew.selection.chosen


def test_a_part_that_nothing_fits_is_named_by_its_cluster():
    parts = [Part(storage_bytes=9, energies=[Energy()], devices=1, precisions=("int8", "float32"))]
    with pytest.raises(FleetError, match=r"'south'.*is 10 bytes and the limit is 9 bytes"):
        choose_for(_CANDIDATES, {"south": parts}, Selection())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_candidate_without_a_number_is_left_out_and_the_others_go_on(value: float):
    """As if the grid had never had it; places stay those of the whole table."""
    part = Part(storage_bytes=50, energies=[Energy()], devices=1, precisions=("int8", "float32"))
    for bad in range(5):
        losses = _CANDIDATES.quality.losses.copy()
        losses[bad] = value
        left = np.delete(np.arange(5), bad)
        broken = replace(_CANDIDATES, quality=Quality(losses, np.zeros(5)))
        whole_grid = Candidates(
            grid=Grid(tuple(_VARIANTS[i] for i in left)),
            quality=Quality(losses[left], np.zeros(4)),
            sizes=_CANDIDATES.sizes[left],
            tokens=16,
        )
        (found,) = choose_for(broken, {"north": [part]}, Selection())
        (expected,) = choose_for(whole_grid, {"north": [part]}, Selection())
        assert found.selection.chosen == left[expected.selection.chosen]
        assert found.selection.feasible.tolist() == left[expected.selection.feasible].tolist()
        assert found.selection.front.tolist() == left[expected.selection.front].tolist()


def test_no_candidate_with_a_number_is_told():
    broken = replace(_CANDIDATES, quality=Quality(np.full(5, np.nan), np.zeros(5)))
    part = Part(storage_bytes=50, energies=[Energy()], devices=1, precisions=("int8", "float32"))
    with pytest.raises(FleetError, match="'north': no candidate has a finite loss"):
        choose_for(broken, {"north": [part]}, Selection())


def test_devices_that_execute_no_candidate_are_told_before_any_choice():
    part = Part(storage_bytes=50, energies=[Energy()], devices=1, precisions=("int4",))
    words = "'north': no candidate has a precision that its devices execute: .*float32, int8.*int4"
    with pytest.raises(FleetError, match=words):
        choose_for(_CANDIDATES, {"north": [part]}, Selection())
