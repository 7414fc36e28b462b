"""Latency, memory and power of forward passes on the machine at hand, measured."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from acme_fleet.config.devices import Precision
from acme_fleet.cost.power import PowerSource, Unavailable
from acme_fleet.models.features import moved
from acme_fleet.models.shape import ModelShape

WIDTHS = (0.25, 0.5, 0.75, 1.0)
_DEPTHS = 4
_TURNS = 5
_WARM_UP = 3
_LEAST_S = 0.1

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]
Pass = Callable[[], object]
"""One forward pass of a model on inputs that are ready."""
Load = Callable[[nn.Module, Mapping[str, Tensor], Precision], Pass]
"""Makes a model ready in a runtime, with its weights at a precision."""


@dataclass(frozen=True)
class Bench:
    """Tools of a measurement: a runtime, a source of joules, and time limits.

    Attributes:
        place: the processor or a GPU.
        load: into the runtime.
        precisions: to measure beside float32, of those that the runtime executes.
        power: where joules come from.
        runs: forward passes, at least, of which the median is taken.
        progress: called with a stage, and finished and total parts of it.
    """

    place: torch.device
    load: Load
    precisions: tuple[Precision, ...]
    power: PowerSource | Unavailable
    runs: int
    progress: Progress


@dataclass(frozen=True)
class BatchCost:
    """One forward pass of a model on ``batch`` samples; ``energy_j`` is None without a source."""

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


def in_torch(place: torch.device) -> Load:
    """PyTorch on a device, in float32."""

    def load(model: nn.Module, inputs: Mapping[str, Tensor], precision: Precision) -> Pass:
        assert precision == "float32"
        return _torch_pass(model.to(place), moved(dict(inputs), place))

    return load


def measure_batches(shape: ModelShape, largest: int, bench: Bench) -> list[BatchCost]:
    """Costs of a model of its own shape on 1, 2, 4, … up to ``largest`` samples."""
    model = shape.build()
    batches = _counted(powers_of_two(largest), "batch sizes", bench.progress)
    return [_batch_cost(model, shape, batch, bench) for batch in batches]


def _batch_cost(model: nn.Module, shape: ModelShape, batch: int, bench: Bench) -> BatchCost:
    one = bench.load(model, shape.inputs(batch), "float32")
    latency_s, energy_j = statistics.median(_pass_seconds(one, bench.runs)), None
    if not isinstance(bench.power, Unavailable):
        energy_j = latency_s * measure_power(one, bench.power, latency_s)
    return BatchCost(batch, latency_s, peak_memory_bytes(bench.place), energy_j)


def measure_spread(shape: ModelShape, bench: Bench) -> Spread:
    """Measure models of one shape at every width and depth of the spread.

    They take turns, so that a machine that is slower for a while is slower for all of them.
    """
    pairs = [(w, d) for w in WIDTHS for d in spread_depths(shape.layers)]
    inputs = shape.inputs(1)
    ready = {
        pair: bench.load(shape.resized(*pair), inputs, "float32")
        for pair in _counted(pairs, "models", bench.progress)
    }
    seconds: dict[tuple[float, int], list[float]] = {pair: [] for pair in pairs}
    watts: dict[tuple[float, int], list[float]] = {pair: [] for pair in pairs}
    for pair in _counted(pairs * _TURNS, "widths and depths", bench.progress):
        seconds[pair] += _pass_seconds(ready[pair], math.ceil(bench.runs / _TURNS))
        if not isinstance(bench.power, Unavailable):
            latency_s = statistics.median(seconds[pair])
            watts[pair].append(measure_power(ready[pair], bench.power, latency_s))
    widths, depths = np.array(pairs, dtype=float).T
    return Spread(
        widths=widths,
        depths=depths,
        latency_s=_medians(seconds),
        power_w=None if isinstance(bench.power, Unavailable) else _medians(watts),
    )


def measure_precisions(shape: ModelShape, bench: Bench) -> dict[Precision, float]:
    """Seconds of one sample at each precision, of a model of its own shape, measured in turns."""
    inputs, model = shape.inputs(1), shape.build()
    known: list[Precision] = ["float32", *bench.precisions]
    ready = {each: bench.load(model, inputs, each) for each in known}
    seconds: dict[Precision, list[float]] = {each: [] for each in known}
    for each in _counted(known * _TURNS, "precisions", bench.progress):
        seconds[each] += _pass_seconds(ready[each], math.ceil(bench.runs / _TURNS))
    return {each: statistics.median(values) for each, values in seconds.items()}


def _medians(found: dict[tuple[float, int], list[float]]) -> np.ndarray:
    return np.array([statistics.median(values) for values in found.values()])


def measure_latency(model: nn.Module, inputs: dict[str, Tensor], runs: int = 20) -> float:
    """Median seconds of one forward pass on ``inputs`` in PyTorch, after a warm-up."""
    return statistics.median(_pass_seconds(_torch_pass(model, inputs), runs))


def _torch_pass(model: nn.Module, inputs: dict[str, Tensor]) -> Pass:
    on_gpu = next(iter(inputs.values())).is_cuda

    def run() -> None:
        model(**inputs)
        if on_gpu:
            torch.cuda.synchronize()

    return run


@torch.no_grad()
def _pass_seconds(run: Pass, runs: int) -> list[float]:
    """Seconds of each forward pass, at least ``runs`` of them, for at least ``_LEAST_S``."""
    for _ in range(_WARM_UP):
        run()
    moments = [time.perf_counter()]
    while len(moments) <= runs or moments[-1] - moments[0] < _LEAST_S:
        run()
        moments.append(time.perf_counter())
    return [stop - start for start, stop in itertools.pairwise(moments)]


@torch.no_grad()
def measure_power(run: Pass, source: PowerSource, latency_s: float) -> float:
    """Mean watts over as many forward passes as the source needs."""
    passes = math.ceil(source.least_s / latency_s)
    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        start = time.perf_counter()
        for _ in range(passes):
            run()
        seconds = time.perf_counter() - start

    return source.energy_j(work) / seconds


def peak_memory_bytes(place: torch.device) -> int:
    """The most memory so far: what the process had resident, or on a GPU what torch had there."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
