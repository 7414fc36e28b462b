"""What a model costs on the machine at hand, measured, and the constants of Eq. 2 from it."""

from __future__ import annotations

import itertools
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from acme_fleet.cost.energy import Fit, fit_latency, fit_latency_with_depth, fit_power
from acme_fleet.cost.power import PowerSource, Unavailable
from acme_fleet.errors import FleetError
from acme_fleet.models.shape import ModelShape

WIDTHS = (0.25, 0.5, 0.75, 1.0)
_DEPTHS = 4
_TURNS = 5
_WARM_UP = 3
_LEAST_S = 0.1

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BatchCost:
    """One forward pass of the model itself on ``batch`` samples.

    ``energy_j`` is None without a source. ``peak_bytes`` is the most that the whole process has
    had resident in main memory so far, Python and torch included.
    """

    batch: int
    latency_s: float
    peak_bytes: int
    energy_j: float | None


@dataclass(frozen=True)
class Spread:
    """Models of other widths and depths, one sample each, arrays of shape ``(models,)``.

    ``power_w`` is None without a source.
    """

    widths: np.ndarray
    depths: np.ndarray
    latency_s: np.ndarray
    power_w: np.ndarray | None


@dataclass(frozen=True)
class Fits:
    """Constants of Eq. 2; ``with_depth`` is T with a term in d, where the depths determine it."""

    latency: Fit
    with_depth: Fit | None
    power: Fit | None


@dataclass(frozen=True)
class Profile:
    """All that ``acme profile`` found out. Times and memory are measured; ``power`` says itself."""

    model: str
    machine: str
    tokens: int
    params: int
    start_bytes: int
    power: PowerSource | Unavailable
    batches: list[BatchCost]
    spread: Spread
    fits: Fits


def profile_model(
    folder: Path,
    power: PowerSource | Unavailable,
    *,
    on_gpu: bool = False,
    largest_batch: int = 16,
    runs: int = 20,
    progress: Progress = lambda stage, done, total: None,
) -> Profile:
    """Measure a model by batch size, and others of its shape over a spread of widths and depths.

    Args:
        folder: a device folder of a run, or a Hugging Face checkpoint.
        power: where joules come from.
        on_gpu: run on the first NVIDIA GPU and not on the processor.
        largest_batch: batches are 1, 2, 4, … up to this.
        runs: forward passes of which the median is taken.
        progress: called with a stage, and finished and total parts of it.

    Raises:
        FleetError: if the folder holds no model of a known family, or there is no GPU.
        RunError: if the device folder is damaged.
    """
    if on_gpu and not torch.cuda.is_available():
        raise FleetError("torch finds no NVIDIA GPU on this machine; measure without --gpu")
    place = torch.device("cuda" if on_gpu else "cpu")
    shape = ModelShape.read(folder)
    start_bytes = peak_memory_bytes()
    model = shape.build().to(place)
    batches = [
        _batch_cost(model, _move(shape.inputs(batch), place), power, runs)
        for batch in _counted(powers_of_two(largest_batch), "batch sizes", progress)
    ]
    spread = measure_spread(shape, power, place, runs, progress)
    return Profile(
        model=str(folder),
        machine=_machine(on_gpu),
        tokens=shape.tokens,
        params=sum(p.numel() for p in model.parameters()),
        start_bytes=start_bytes,
        power=power,
        batches=batches,
        spread=spread,
        fits=fit_constants(spread),
    )


# --- measuring --------------------------------------------------------------------------------


def measure_latency(model: nn.Module, inputs: dict[str, Tensor], runs: int = 20) -> float:
    """Median seconds of one forward pass on ``inputs``, after a warm-up."""
    return statistics.median(_pass_seconds(model, inputs, runs))


@torch.no_grad()
def _pass_seconds(model: nn.Module, inputs: dict[str, Tensor], runs: int) -> list[float]:
    """Seconds of each forward pass, at least ``runs`` of them, for at least ``_LEAST_S``."""
    for _ in range(_WARM_UP):
        _run(model, inputs)
    moments = [time.perf_counter()]
    while len(moments) <= runs or moments[-1] - moments[0] < _LEAST_S:
        _run(model, inputs)
        moments.append(time.perf_counter())
    return [stop - start for start, stop in itertools.pairwise(moments)]


def measure_spread(
    shape: ModelShape,
    power: PowerSource | Unavailable,
    place: torch.device,
    runs: int,
    progress: Progress,
) -> Spread:
    """Measure models of one shape at every width and depth of the spread.

    They take turns, so that a machine that is slower for a while is slower for all of them.
    """
    pairs = [(w, d) for w in WIDTHS for d in spread_depths(shape.layers)]
    one = _move(shape.inputs(1), place)
    seconds: dict[tuple[float, int], list[float]] = {pair: [] for pair in pairs}
    watts: dict[tuple[float, int], list[float]] = {pair: [] for pair in pairs}
    for pair in _counted(pairs * _TURNS, "widths and depths", progress):
        model = shape.resized(*pair).to(place)
        seconds[pair] += _pass_seconds(model, one, math.ceil(runs / _TURNS))
        if not isinstance(power, Unavailable):
            latency_s = statistics.median(seconds[pair])
            watts[pair].append(measure_power(model, one, power, latency_s))
    widths, depths = np.array(pairs, dtype=float).T
    return Spread(
        widths=widths,
        depths=depths,
        latency_s=np.array([statistics.median(seconds[pair]) for pair in pairs]),
        power_w=(
            None
            if isinstance(power, Unavailable)
            else np.array([statistics.median(watts[pair]) for pair in pairs])
        ),
    )


@torch.no_grad()
def measure_power(
    model: nn.Module, inputs: dict[str, Tensor], source: PowerSource, latency_s: float
) -> float:
    """Mean watts over as many forward passes as the source needs."""
    passes = math.ceil(source.least_s / latency_s)
    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        start = time.perf_counter()
        for _ in range(passes):
            _run(model, inputs)
        seconds = time.perf_counter() - start

    return source.energy_j(work) / seconds


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    model(**inputs)
    if next(iter(inputs.values())).is_cuda:
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """The most main memory that this process has had resident so far."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _batch_cost(
    model: nn.Module, inputs: dict[str, Tensor], power: PowerSource | Unavailable, runs: int
) -> BatchCost:
    latency_s, energy_j = measure_latency(model, inputs, runs), None
    if not isinstance(power, Unavailable):
        energy_j = latency_s * measure_power(model, inputs, power, latency_s)
    batch = len(next(iter(inputs.values())))
    return BatchCost(batch, latency_s, peak_memory_bytes(), energy_j)


def _move(inputs: dict[str, Tensor], place: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(place) for name, tensor in inputs.items()}


def _counted(items: Sequence[Item], stage: str, progress: Progress) -> Iterator[Item]:
    for done, item in enumerate(items):
        progress(stage, done, len(items))
        yield item
    progress(stage, len(items), len(items))


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, … up to ``largest``."""
    return [2**n for n in range(largest.bit_length())]


def spread_depths(layers: int) -> list[int]:
    """A quarter, a half, three quarters and all of the layers, rounded up."""
    return sorted({math.ceil(layers * n / _DEPTHS) for n in range(1, _DEPTHS + 1)})


def _machine(on_gpu: bool) -> str:
    cores, version = f"{os.cpu_count()} cores", f"torch {torch.__version__}"
    if on_gpu:
        return f"{torch.cuda.get_device_name()}, {version}"
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            x for x in cpuinfo.read_text().splitlines() if x.startswith(("model name", "Model"))
        ]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {cores}, {torch.get_num_threads()} threads, {version}"


# --- the constants ----------------------------------------------------------------------------


def fit_constants(spread: Spread) -> Fits:
    """Least squares over the spread, see :mod:`acme_fleet.cost.energy`."""
    place = spread.widths, spread.depths
    deep = len(np.unique(spread.depths)) > 1
    return Fits(
        latency=fit_latency(*place, spread.latency_s),
        with_depth=fit_latency_with_depth(*place, spread.latency_s) if deep else None,
        power=None if spread.power_w is None else fit_power(*place, spread.power_w),
    )
