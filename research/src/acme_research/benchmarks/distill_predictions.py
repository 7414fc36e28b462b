"""Predicted against measured time and memory of models that no calibration was fitted to.

A probe calibrates this machine, then other shapes and numbers of tokens are measured the same way.
Times are CPU seconds of one thread, so that other work on the machine matters little.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from acme_fleet.seeding import threads
from acme_fleet.stratos.calibration import Calibration
from acme_fleet.stratos.probe import ON_PROCESSOR, ProbeSettings, measure_models, probe
from acme_research.frame.record import write_benchmark

_HELD_OUT = ((5, 448, 1216, 6000), (8, 256, 704, 3000), (2, 640, 1728, 8000))
_TOKENS = ((3, 128), (1, 96))


def ratios(calibration: Calibration, settings: ProbeSettings) -> dict[str, list[float]]:
    """Predicted ÷ measured by the kind of work, of every held-out configuration."""
    found: dict[str, list[float]] = {}
    for sequences, tokens in _TOKENS:
        held_out = replace(
            settings, shapes=_HELD_OUT, sequences=(sequences,), tokens=tokens, turns=2
        )
        timings, footprints = measure_models(
            torch.device("cpu"), held_out, lambda stage, done, total: None
        )
        for kind, each in timings.items():
            rate = getattr(calibration, kind)
            found.setdefault(kind, []).extend(rate.seconds(t) / t.seconds for t in each)
        factor = calibration.memory.factor
        found.setdefault("memory", []).extend(
            factor * each.predicted_bytes / each.bytes for each in footprints
        )
    return found


def main() -> None:
    settings = replace(ON_PROCESSOR, clock=time.process_time)
    with threads(1):
        calibration = probe(settings=settings)
        found = ratios(calibration, settings)
    errors = {kind: np.abs(np.array(each) - 1) for kind, each in found.items()}
    medians = {kind: float(np.median(each)) for kind, each in errors.items()}
    worst = max(medians, key=lambda kind: medians[kind])
    unit = f"median |predicted ÷ measured - 1| of {worst}, the largest of the four kinds"
    write_benchmark(
        "distill_predictions",
        medians[worst],
        (min(medians.values()), max(medians.values())),
        {
            "interval": "smallest and largest median of the kinds",
            "median error": medians,
            "largest error": {kind: float(each.max()) for kind, each in errors.items()},
            "predicted / measured": found,
            "machine": calibration.machine,
            "clock": "CPU seconds of one thread",
        },
        instead={"unit": unit},
    )


if __name__ == "__main__":
    main()
