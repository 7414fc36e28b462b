"""Measurements by a formula, and a calibration from them."""

from __future__ import annotations

import datetime

from acme_fleet.stratos.calibration import (
    Calibration,
    Footprint,
    Rate,
    Timing,
    fit_memory,
    fit_rate,
)


def timings(layer_s: float = 0.01, parameter_s: float = 1e-9, noise: float = 0.0) -> list[Timing]:
    """Of 2 GFLOP/s."""
    shapes = [(1e9, 2, 10**6), (4e9, 12, 10**6), (3e9, 4, 9 * 10**6), (8e9, 6, 2 * 10**6)]
    shapes += [(2e9, 10, 5 * 10**6)]
    return [
        Timing(
            kind="training",
            model="m",
            work=work,
            layers=layers,
            parameters=parameters,
            seconds=(work / 2e9 + layers * layer_s + parameters * parameter_s)
            * (1 + noise * (-1) ** number),
            left_out_s=1.0,
        )
        for number, (work, layers, parameters) in enumerate(shapes)
    ]


def calibration(**changes: object) -> Calibration:
    """One of a processor."""
    rate, told = fit_rate(timings(), by_parameters=True)
    footprints = [Footprint(model="m", predicted_bytes=100, bytes=each) for each in (90, 120, 150)]
    content = {
        "machine": "a processor",
        "accelerator": None,
        "date": datetime.date(2026, 3, 1),
        "numbers": "float32",
        "matmul_flops": 3e9,
        "copy_bytes": 1e9,
        "training": rate,
        "prefill": rate,
        "decoding": Rate(per_second=5e8, layer_s=0.001, error=0.1),
        "memory": fit_memory(footprints, 1000.0),
        "timings": told,
        "footprints": footprints,
    }
    return Calibration.model_validate(content | changes)
