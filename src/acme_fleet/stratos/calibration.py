"""Calibration: constants of the predictors that were measured on a machine."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from jaxtyping import Float
from pydantic import Field
from scipy.optimize import nnls

from acme_fleet.config.base import Settings
from acme_fleet.errors import FleetError
from acme_fleet.runs.atomic import replacing
from acme_fleet.stratos.settings_file import read_as

Positive = Annotated[float, Field(gt=0, le=1e30)]
NotNegative = Annotated[float, Field(ge=0, le=1e12)]
Kind = Literal["training", "prefill", "decoding"]


class Rate(Settings):
    """Seconds of a pass: work ÷ ``per_second`` + L × ``layer_s`` + N × ``parameter_s`` (ours)."""

    per_second: Positive
    """Operations, or bytes for decoding, in a second."""
    layer_s: NotNegative
    """Seconds that each layer adds to a pass, whatever its work."""
    parameter_s: NotNegative = 0.0
    """Seconds that each parameter adds to a pass: the optimiser's work in a training step."""
    error: NotNegative
    """Largest error on configurations left out of the fit, as a share of what was measured."""

    def seconds(self, timing: Timing) -> float:
        """Seconds of a configuration by this rate."""
        added = timing.layers * self.layer_s + timing.parameters * self.parameter_s
        return timing.work / self.per_second + added


class Timing(Settings):
    """One configuration that was measured."""

    kind: Kind
    """The work."""
    model: str
    """Shape of the model."""
    work: Positive
    """Operations, or bytes for decoding, of one pass."""
    layers: Annotated[int, Field(ge=1)]
    """Transformer layers."""
    parameters: Annotated[int, Field(ge=1)]
    """Parameters."""
    seconds: Positive
    """Median of the measured passes."""
    left_out_s: Positive
    """Prediction by a fit to the other configurations of this kind."""


class Footprint(Settings):
    """Memory of one configuration that was measured while it trained."""

    model: str
    """Shape of the model."""
    predicted_bytes: Positive
    """By the formula."""
    bytes: Positive
    """Peak that was measured, above what was in use before."""


class Memory(Settings):
    """Measured ÷ predicted memory of training."""

    factor: Positive
    """Median over the configurations."""
    error: NotNegative
    """Largest error of the corrected prediction on configurations left out."""
    start_bytes: NotNegative
    """In use before there was a model: the program and its libraries."""


class Calibration(Settings):
    """A file that ``acme distill probe`` writes."""

    machine: str
    """Processor or accelerator, cores, threads, version of torch."""
    accelerator: str | None
    """Name of the accelerator as in price lists; none for a processor."""
    date: datetime.date
    """Day of the measurement."""
    numbers: Literal["float32", "bfloat16"]
    """Of the matrix products."""
    matmul_flops: Positive
    """Operations a second of one large matrix product."""
    copy_bytes: Positive
    """Bytes a second that a large copy reads and writes."""
    training: Rate
    """Of a training step."""
    prefill: Rate
    """Of a forward pass over many tokens."""
    decoding: Rate
    """Of a forward pass for one more token."""
    memory: Memory
    """Of a training step."""
    timings: list[Timing]
    """All that was timed."""
    footprints: list[Footprint]
    """All memory that was measured."""


def fit_rate(timings: Sequence[Timing], *, by_parameters: bool) -> tuple[Rate, list[Timing]]:
    """Least squares of relative errors over constants that are not negative.

    Args:
        timings: of one kind, at least four.
        by_parameters: fit ``parameter_s`` too.

    Returns:
        The rate, and the timings with the prediction of each by a fit to the others.

    Raises:
        ValueError: if there are fewer than four measurements.
    """
    if len(timings) < 4:
        raise ValueError(f"{len(timings)} measurements do not determine constants and an error")
    columns = [[t.work for t in timings], [t.layers for t in timings]]
    if by_parameters:
        columns.append([t.parameters for t in timings])
    table = np.array(columns, dtype=np.float64).T
    measured = np.array([t.seconds for t in timings])
    told, errors = [], []
    for row, timing in enumerate(timings):
        others = _solve(np.delete(table, row, axis=0), np.delete(measured, row))
        predicted = max(float(table[row] @ others), 1e-12)
        errors.append(abs(predicted / timing.seconds - 1))
        told.append(timing.model_copy(update={"left_out_s": predicted}))
    constants = [*_solve(table, measured).tolist(), 0.0][:3]
    rate = Rate(
        per_second=1 / max(constants[0], 1e-30),
        layer_s=constants[1],
        parameter_s=constants[2],
        error=max(errors),
    )
    return rate, told


def _solve(
    table: Float[np.ndarray, "measurements constants"], seconds: Float[np.ndarray, " measurements"]
) -> Float[np.ndarray, " constants"]:
    scale = table.max(axis=0)  # operations are 10¹⁰ times as many as layers
    found, _ = nnls(table / scale / seconds[:, None], np.ones(len(seconds)))
    return found / scale


def fit_memory(footprints: Sequence[Footprint], start_bytes: float) -> Memory:
    """The correction of the memory formula, and its error on configurations left out.

    Raises:
        ValueError: if there are fewer than three measurements.
    """
    if len(footprints) < 3:
        raise ValueError(f"{len(footprints)} measurements determine no factor with an error")
    ratios = np.array([each.bytes / each.predicted_bytes for each in footprints])
    others = [np.median(np.delete(ratios, row)) for row in range(len(ratios))]
    error = float(np.abs(np.array(others) / ratios - 1).max())
    return Memory(factor=float(np.median(ratios)), error=error, start_bytes=start_bytes)


def read_calibration(path: Path) -> Calibration:
    """Read and check a calibration.

    Raises:
        FleetError: naming the key that is wrong.
    """
    return read_as(Calibration, path, "calibration", "`acme distill probe` writes one")


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file.

    Raises:
        FleetError: if it exists.
        WriteError: if it cannot be written.
    """
    if path.exists():
        raise FleetError(f"{path} exists already; it was not changed")
    content = yaml.safe_dump(calibration.model_dump(mode="json"), sort_keys=False)
    with replacing(path) as file:
        file.write_text(content, encoding="utf-8")
