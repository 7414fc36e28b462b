"""Joules from a fake sysfs tree, a fake NVML, a meter's CSV and the process clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.cost.power import (
    Meter,
    Nvml,
    Rapl,
    ThermalDesignPower,
    Unavailable,
    find_source,
    integrate,
    read_meter,
)
from acme_fleet.errors import FleetError

RANGE = 262_143_328_850


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """The files of an Intel server: packages, their parts, and the same package by MMIO."""
    for zone, name, energy in (
        ("intel-rapl:0", "package-0", 5_000_000),
        ("intel-rapl:0:0", "core", 3_000_000),
        ("intel-rapl:0:1", "dram", 1_000_000),
        ("intel-rapl:1", "package-1", RANGE - 1_000_000),
        ("intel-rapl:2", "psys", 9_000_000),
        ("intel-rapl-mmio:0", "package-0", 5_000_000),
    ):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def drawing(powercap: Path, **joules: float) -> Callable[[], None]:
    """Work that moves the counters of the zones by so many joules."""

    def work() -> None:
        for zone, drawn in joules.items():
            path = powercap / f"intel-rapl:{zone.removeprefix('z').replace('_', ':')}" / "energy_uj"
            path.write_text(f"{(int(path.read_text()) + round(1e6 * drawn)) % RANGE}\n")

    return work


class TestRapl:
    def test_packages_and_memory_are_counted_once(self, powercap: Path) -> None:
        rapl = Rapl.find(powercap)
        assert isinstance(rapl, Rapl)
        assert rapl.measured
        assert rapl.name == "RAPL package-0 + dram + package-1"
        assert rapl.energy_j(drawing(powercap, z0=7, z0_0=6, z0_1=2)) == pytest.approx(9)

    def test_counter_that_overflows(self, powercap: Path) -> None:
        rapl = Rapl.find(powercap)
        assert isinstance(rapl, Rapl)
        assert rapl.energy_j(drawing(powercap, z1=3)) == pytest.approx(3)
        assert int((powercap / "intel-rapl:1" / "energy_uj").read_text()) < 3_000_000

    def test_machine_without(self, tmp_path: Path) -> None:
        assert Rapl.find(tmp_path / "none") == Unavailable(f"no RAPL counters in {tmp_path}/none")

    def test_counter_for_root_only(self, powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        readable = Path.read_text

        def guarded(path: Path) -> str:  # as root, a test cannot take the right to read away
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return readable(path)

        monkeypatch.setattr(Path, "read_text", guarded)
        found = Rapl.find(powercap)
        assert isinstance(found, Unavailable)
        assert found.reason.startswith("only root may read the RAPL counter")
        assert found.reason.endswith("intel-rapl:0/energy_uj")


class NVMLError(Exception):
    pass


def fake_nvml(energies_mj: list[int] | None) -> SimpleNamespace:
    """pynvml with one GPU whose counter reads these numbers, or whose driver is missing."""

    def init() -> None:
        if energies_mj is None:
            raise NVMLError("Driver Not Loaded")

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetHandleByIndex=lambda index: ("gpu", index),
        nvmlDeviceGetName=lambda handle: "H200",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: (energies_mj or []).pop(0),
    )


class TestNvml:
    def test_difference_of_two_readings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([1_000, 5_000, 17_500]))
        source = find_source(on_gpu=True, meter=None, tdp_w=None)
        assert isinstance(source, Nvml)
        assert (source.name, source.measured) == ("NVML H200", True)
        assert source.energy_j(lambda: None) == pytest.approx(12.5)

    def test_missing_package_and_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert Nvml.find() == Unavailable("NVML needs `pip install nvidia-ml-py`")
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(None))
        assert Nvml.find() == Unavailable("NVML: Driver Not Loaded")


def test_tdp_counts_the_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.0])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    source = ThermalDesignPower(20)
    assert (source.name, source.measured) == ("TDP 20 W × load", False)
    assert source.energy_j(lambda: None) == pytest.approx(20 * 3 / 4)


class TestChoice:
    def test_order(self, powercap: Path, tmp_path: Path) -> None:
        def find(**given: Any) -> object:
            wanted = {"on_gpu": False, "meter": None, "tdp_w": None, "powercap": powercap}
            return find_source(**{**wanted, **given})

        assert find(meter=Path("m.csv"), tdp_w=5) == Meter(Path("m.csv"))
        assert isinstance(find(tdp_w=5), Rapl)
        empty = tmp_path / "empty"
        assert find(tdp_w=5, powercap=empty) == ThermalDesignPower(5)
        assert isinstance(find(powercap=empty), Unavailable)

    def test_a_processors_tdp_says_nothing_about_a_gpu(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert isinstance(find_source(on_gpu=True, meter=None, tdp_w=5), Unavailable)


class TestMeter:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "meter.csv"

    def test_constant_and_rising_power(self, path: Path) -> None:
        path.write_text("time,watts\n100,5\n110,5\n120,15\n")
        for (start, stop), joules in {(100, 110): 50, (110, 120): 100, (105, 115): 62.5}.items():
            moments = iter([float(start), float(stop)])
            meter = Meter(path, clock=lambda moments=moments: next(moments))
            assert meter.energy_j(lambda: None) == pytest.approx(joules)

    def test_iso_times_other_columns_and_a_line_half_written(self, path: Path) -> None:
        path.write_text(
            "volts,time,watts\n5,2026-01-02T03:04:05+00:00,2\n5,2026-01-02T03:04:06.500Z,3\n5,2026"
        )
        times, watts = read_meter(path)
        np.testing.assert_allclose(np.diff(times), [1.5])
        np.testing.assert_array_equal(watts, [2, 3])

    def test_waits_for_the_rows(self, path: Path) -> None:
        path.write_text("time,watts\n0,4\n1,4\n")
        moments, waited = iter([0.5, 2.5]), []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            with path.open("a") as file:
                file.write(f"{1 + len(waited)},4\n")

        meter = Meter(path, clock=lambda: next(moments), sleep=sleep)
        assert meter.energy_j(lambda: None) == pytest.approx(8)
        assert len(waited) == 2

    def test_meter_that_stands_still(self, path: Path) -> None:
        path.write_text("time,watts\n0,4\n1,4\n")
        moments = iter([0.5, 2.5])
        meter = Meter(path, clock=lambda: next(moments), sleep=lambda _: None)
        with pytest.raises(FleetError, match=r"rows from 0\.0 s to 1\.0 s, the work ran from 0\.5"):
            meter.energy_j(lambda: None)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "has no rows"),
            ("time,watts\n", "has no rows"),
            ("time,power\n1,2\n", "line 2: expected columns `time`"),
            ("time,watts\n1,2\n2,\n", "line 3: expected columns"),
            ("time,watts\n1,2\nnoon,2\n", "line 3: expected columns"),
            ("time,watts\n2,2\n1,2\n", "times must ascend"),
            ("time,watts\n1,2\n2,nan\n", "watts must be numbers"),
            ("time,watts\n1\n", "line 2: expected columns"),
        ],
    )
    def test_file_that_is_no_meters(self, path: Path, text: str, words: str) -> None:
        path.write_text(text)
        with pytest.raises(FleetError) as refusal:
            read_meter(path)
        assert words in str(refusal.value)
        assert str(path) in str(refusal.value)

    def test_missing_file(self, path: Path) -> None:
        with pytest.raises(FleetError, match=r"cannot read the meter's file .*meter\.csv"):
            read_meter(path)


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 50)), min_size=2, max_size=20),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_parts_add_up(rows: list[tuple[float, float]], shares: tuple[float, ...]) -> None:
    times, watts = np.cumsum([step for step, _ in rows]), np.array([watts for _, watts in rows])
    first, middle, last = np.interp(sorted(shares), [0, 1], times[[0, -1]])
    whole = integrate(times, watts, first, last)
    parts = integrate(times, watts, first, middle) + integrate(times, watts, middle, last)
    assert whole == pytest.approx(parts, abs=1e-9)
    assert watts.min() * (last - first) - 1e-9 <= whole <= watts.max() * (last - first) + 1e-9
