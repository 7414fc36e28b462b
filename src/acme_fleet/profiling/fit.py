"""``acme profile``: what a model costs on this machine, and the constants of Eq. 2 from it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from acme_fleet.config.devices import Precision
from acme_fleet.cost.energy import Fit, fit_latency, fit_latency_with_depth, fit_power
from acme_fleet.cost.power import PowerSource, Unavailable
from acme_fleet.errors import FleetError
from acme_fleet.models.shape import ModelShape
from acme_fleet.profiling.measure import (
    BatchCost,
    Bench,
    Load,
    Progress,
    Spread,
    in_torch,
    measure_batches,
    measure_precisions,
    measure_spread,
    peak_memory_bytes,
)

_LEAST_R_SQUARED = 0.5


@dataclass(frozen=True)
class Runtime:
    """A runtime that models are measured in.

    Attributes:
        name: of the program.
        load: makes a model ready.
        precisions: that it executes, beside float32.
    """

    name: str
    load: Load
    precisions: tuple[Precision, ...]


TORCH = Runtime("pytorch", in_torch(torch.device("cpu")), ())


@dataclass(frozen=True)
class Fits:
    """Constants of Eq. 2.

    Attributes:
        latency: T.
        with_depth: T with a term in d, where the depths determine it.
        power: none without a source.
        shares: of the layers' latency in float32, by precision.
    """

    latency: Fit
    with_depth: Fit | None
    power: Fit | None
    shares: dict[Precision, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """All that was found out. Times and memory are measured; ``power`` says itself.

    ``start_bytes`` is the peak memory before there was a model; ``memory`` says whose it is.
    """

    model: str
    runtime: str
    machine: str
    memory: str
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
    runtime: Runtime = TORCH,
    largest_batch: int = 16,
    runs: int = 20,
    progress: Progress = lambda stage, done, total: None,
) -> Profile:
    """Measure a model by batch size, and others of its shape over a spread of widths and depths.

    Args:
        folder: a device folder of a run, or a Hugging Face checkpoint.
        power: where joules come from.
        on_gpu: run on the first NVIDIA GPU and not on the processor.
        runtime: what runs the models on the processor.
        largest_batch: batches are 1, 2, 4, … up to this.
        runs: forward passes, at least, of which the median is taken.
        progress: called with a stage, and finished and total parts of it.

    Raises:
        FleetError: if the folder holds no model of a known family, or there is no GPU.
        RunError: if the device folder is damaged.
    """
    if on_gpu and not torch.cuda.is_available():
        raise FleetError("torch finds no NVIDIA GPU on this machine; measure without --gpu")
    if on_gpu and runtime is not TORCH:
        raise FleetError(f"{runtime.name} is measured on the processor; leave --gpu out")
    place = torch.device("cuda:0" if on_gpu else "cpu")
    load = in_torch(place) if on_gpu else runtime.load
    bench = Bench(place, load, runtime.precisions, power, runs, progress)
    shape = ModelShape.read(folder)
    start_bytes = peak_memory_bytes(bench.place)
    batches = measure_batches(shape, largest_batch, bench)
    spread = measure_spread(shape, bench)
    fits = fit_constants(spread)
    if runtime.precisions:
        fits = replace(fits, shares=_shares(fits, measure_precisions(shape, bench)))
    return Profile(
        model=str(folder),
        runtime=runtime.name,
        machine=machine_text(on_gpu),
        memory="GPU memory allocated by torch" if on_gpu else "resident memory of the process",
        tokens=shape.tokens,
        params=sum(parameter.numel() for parameter in shape.build().parameters()),
        start_bytes=start_bytes,
        power=power,
        batches=batches,
        spread=spread,
        fits=fits,
    )


def _shares(fits: Fits, latency_s: dict[Precision, float]) -> dict[Precision, float]:
    """Latencies less L, of what remains of the one in float32."""
    base = (fits.with_depth or fits.latency).base
    whole = latency_s["float32"] - base
    if whole <= 0:
        return {}
    return {each: max(s - base, 0.0) / whole for each, s in latency_s.items() if each != "float32"}


def fit_constants(spread: Spread) -> Fits:
    """Least squares over the spread, see :mod:`acme_fleet.cost.energy`."""
    place = spread.widths, spread.depths
    deep = len(np.unique(spread.depths)) > 1
    return Fits(
        latency=fit_latency(*place, spread.latency_s),
        with_depth=fit_latency_with_depth(*place, spread.latency_s) if deep else None,
        power=None if spread.power_w is None else fit_power(*place, spread.power_w),
    )


def machine_text(on_gpu: bool) -> str:
    """The processor or GPU, cores, threads and the version of torch, in one line."""
    version = f"torch {torch.__version__}"
    if on_gpu:
        return f"{torch.cuda.get_device_name()}, {version}"
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line for line in lines if line.startswith(("model name", "Model"))]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {version}"


def check_fit(found: Profile) -> None:
    """Refuse constants that say little about what was measured.

    Raises:
        FleetError: if not even half of the latencies' variance is explained.
    """
    fit = found.fits.with_depth or found.fits.latency
    if fit.r_squared < _LEAST_R_SQUARED:
        raise FleetError(
            f"the fitted latency explains {max(0.0, fit.r_squared):.0%} of the measured one and is "
            f"up to {fit.max_relative_error:.0%} off; nothing was written. Measure again while the "
            f"machine does nothing else, with OMP_NUM_THREADS=1 if its cores are shared"
        )
