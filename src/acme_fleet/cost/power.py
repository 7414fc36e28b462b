"""Joules that a piece of work takes, by whatever can say it on the machine at hand.

Every source says what it is and whether it measures or estimates. Joules include what the
machine draws when idle, since a device draws that too; only ``TDP × load`` leaves it out.
"""

from __future__ import annotations

import csv
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from acme_fleet.errors import FleetError

POWERCAP = Path("/sys/class/powercap")
_METER_PATIENCE_S = 15.0

Work = Callable[[], None]


class PowerSource(Protocol):
    """Something that knows how much energy was drawn."""

    @property
    def name(self) -> str:
        """The source's name."""
        ...

    @property
    def measured(self) -> bool:
        """True if its joules are measured; otherwise they are estimated."""
        ...

    @property
    def least_s(self) -> float:
        """The shortest work, in seconds, whose joules mean something."""
        ...

    def energy_j(self, work: Work) -> float:
        """Do the work; the joules that were drawn meanwhile."""
        ...


@dataclass(frozen=True)
class Unavailable:
    """Why a source cannot be used."""

    reason: str


def find_source(
    *, on_gpu: bool, meter: Path | None, tdp_w: float | None, powercap: Path = POWERCAP
) -> PowerSource | Unavailable:
    """The best source there is: a meter, else NVML or RAPL, else TDP × load.

    Args:
        on_gpu: whether the work runs on an NVIDIA GPU; otherwise it runs on the processor.
        meter: CSV of a meter that is running. tdp_w: the processor's thermal design power.
        powercap: where Linux shows RAPL.
    """
    if meter is not None:
        return Meter(meter)
    found = Nvml.find() if on_gpu else Rapl.find(powercap)
    if isinstance(found, Unavailable) and tdp_w is not None and not on_gpu:
        return ThermalDesignPower(tdp_w)
    return found


@dataclass(frozen=True)
class Rapl:
    """Energy counters of the processor's packages and their memory, from Linux' powercap."""

    zones: tuple[Path, ...]
    measured = True
    least_s = 0.2  # the counters move every millisecond

    @staticmethod
    def find(powercap: Path = POWERCAP) -> Rapl | Unavailable:
        """All packages of this machine; ``core`` and ``uncore`` are parts of them."""
        # Not intel-rapl-mmio: the same package once more.
        zones = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if (zone / "name").read_text().startswith(("package", "dram"))
        ]
        if not zones:
            return Unavailable(f"no RAPL counters in {powercap}")
        try:
            for zone in zones:
                (zone / "energy_uj").read_text()
        except PermissionError as error:
            return Unavailable(f"only root may read the RAPL counter {error.filename}")
        return Rapl(tuple(zones))

    @property
    def name(self) -> str:
        """The domains that are counted."""
        return "RAPL " + " + ".join((zone / "name").read_text().strip() for zone in self.zones)

    def energy_j(self, work: Work) -> float:
        """See :class:`PowerSource`. A counter that overflowed once is understood."""
        before = self._read("energy_uj")
        work()
        drawn = self._read("energy_uj") - before
        overflow = np.where(drawn < 0, self._read("max_energy_range_uj"), 0)
        return float(1e-6 * (drawn + overflow).sum())

    def _read(self, name: str) -> np.ndarray:
        return np.array([int((zone / name).read_text()) for zone in self.zones])


@dataclass(frozen=True)
class Nvml:
    """The energy counter of the first NVIDIA GPU (Volta or newer)."""

    library: Any
    handle: Any
    measured = True
    least_s = 0.5  # the counter moves every 20 to 100 milliseconds

    @staticmethod
    def find() -> Nvml | Unavailable:
        """The GPU, if its driver and the package ``nvidia-ml-py`` are there."""
        try:
            library: Any = importlib.import_module("pynvml")
        except ImportError:
            return Unavailable("NVML needs `pip install nvidia-ml-py`")
        try:
            library.nvmlInit()
            handle = library.nvmlDeviceGetHandleByIndex(0)
            library.nvmlDeviceGetTotalEnergyConsumption(handle)
        except library.NVMLError as error:
            return Unavailable(f"NVML: {error}")
        return Nvml(library, handle)

    @property
    def name(self) -> str:
        """The GPU's name."""
        return f"NVML {self.library.nvmlDeviceGetName(self.handle)}"

    def energy_j(self, work: Work) -> float:
        """See :class:`PowerSource`."""
        before = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)
        work()
        drawn = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle) - before
        return 1e-3 * drawn


@dataclass(frozen=True)
class ThermalDesignPower:
    """An estimate: the processor's TDP by the share of its cores that this process kept busy."""

    watts: float
    measured = False
    least_s = 0.2

    @property
    def name(self) -> str:
        """With the number that was given."""
        return f"TDP {self.watts:g} W × load"

    def energy_j(self, work: Work) -> float:
        """See :class:`PowerSource`."""
        before = time.process_time()
        work()
        return self.watts * (time.process_time() - before) / (os.cpu_count() or 1)


@dataclass(frozen=True)
class Meter:
    """A meter at the plug or the board whose program appends ``time,watts`` rows to a CSV file.

    Attributes:
        path: the file. Times are Unix seconds or ISO 8601, by this machine's clock.
        clock, sleep: for tests.
    """

    path: Path
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    measured = True
    least_s = 5.0  # meters for the plug give one row a second

    @property
    def name(self) -> str:
        """The file's name."""
        return f"meter {self.path.name}"

    def energy_j(self, work: Work) -> float:
        """See :class:`PowerSource`. Waits until the file has rows past the end of the work.

        Raises:
            FleetError: if it does not get them, or is no such file.
        """
        start = self.clock()
        work()
        stop = self.clock()
        for _ in range(int(_METER_PATIENCE_S / 0.5)):
            if read_meter(self.path)[0][-1] >= stop:
                break
            self.sleep(0.5)
        return integrate(*read_meter(self.path), start, stop, str(self.path))


def read_meter(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times in Unix seconds and watts, each of shape ``(rows,)``.

    Raises:
        FleetError: if the file cannot be read, or naming the first line that is wrong.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise FleetError(f"cannot read the meter's file {path}: {error}") from error
    whole = text[: text.rfind("\n") + 1]  # the last line may still be being written
    rows: list[tuple[float, float]] = []
    for number, row in enumerate(csv.DictReader(whole.splitlines()), 2):
        try:
            rows.append((_moment(row["time"]), float(row["watts"])))
        except (KeyError, TypeError, ValueError) as error:
            raise FleetError(
                f"{path}, line {number}: expected columns `time` (Unix seconds or ISO 8601) and "
                f"`watts`, found {row}"
            ) from error
    if not rows:
        raise FleetError(f"{path} has no rows; it needs a line `time,watts` and rows below it")
    times, watts = np.array(rows).T
    if not (np.isfinite(watts).all() and (np.diff(times) > 0).all()):
        raise FleetError(f"{path}: times must ascend, and watts must be numbers")
    return times, watts


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def integrate(
    times: np.ndarray, watts: np.ndarray, start: float, stop: float, what: str = "the meter"
) -> float:
    """Joules between two moments, with watts taken to be straight between rows.

    Args:
        times: ascending, seconds. watts: of the same shape ``(rows,)``.
        start, stop: in the same seconds. what: whose rows they are, for errors.

    Raises:
        FleetError: if the rows do not reach from ``start`` to ``stop``.
    """
    if not times[0] <= start <= stop <= times[-1]:
        raise FleetError(
            f"{what} has rows from {times[0]:.1f} s to {times[-1]:.1f} s, the work ran from "
            f"{start:.1f} s to {stop:.1f} s; is it running, and by this machine's clock?"
        )
    inside = times[(times > start) & (times < stop)]
    moments = np.array([start, *inside, stop])
    return float(np.trapezoid(np.interp(moments, times, watts), moments))
