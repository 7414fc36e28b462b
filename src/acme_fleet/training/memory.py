"""Memory of this process: what work adds at its peak, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from acme_fleet.errors import FleetError

_CLEAR_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def give_back() -> None:
    """Let the allocator return what is free: it keeps what large stages have used."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)


def resident_bytes() -> float | None:
    """Bytes of this process in memory; none where the system does not tell."""
    return _status("VmRSS") if _STATUS.exists() else None


@contextmanager
def added_at_peak(place: torch.device) -> Iterator[Callable[[], float]]:
    """Bytes that the block adds at its peak, by a function that is called behind it.

    Memory that is free is given back before: if it were used again, it would not be counted.

    Raises:
        FleetError: if the system does not tell.
    """
    found: list[float] = []
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        yield lambda: found[0]
        found.append(float(torch.cuda.max_memory_allocated(place) - before))
        return
    give_back()
    try:
        _CLEAR_PEAK.write_text("5")  # Linux: the peak starts anew
        before_bytes = _status("VmRSS")
    except OSError as error:
        raise FleetError(
            f"the peak of memory cannot be measured here: {_CLEAR_PEAK} cannot be used "
            f"({error.strerror}); it needs Linux, or a GPU"
        ) from error
    yield lambda: found[0]
    found.append(_status("VmHWM") - before_bytes)


def _status(key: str) -> float:
    """Bytes of this process in memory, now (``VmRSS``) or at most (``VmHWM``)."""
    lines = _STATUS.read_text().splitlines()
    line = next(line for line in lines if line.startswith(key))
    return 1024.0 * int(line.split()[1])
