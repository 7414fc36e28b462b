"""Whole runs with 500, 1,000, 2,000 and 5,000 devices in one cluster, each in one process.

    python -m acme_research.benchmarks.scale_devices        # 500 and 5,000: about 20 minutes
    python -m acme_research.benchmarks.scale_devices 500 1000 2000 5000

The result is the exponent of processor seconds in the number of devices: 1 is linear.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from acme_research.frame.many_devices import many_devices, measured_run
from acme_research.frame.record import partial_runs, write_benchmark


def exponent(runs: list[dict[str, float]]) -> float:
    """Slope of log(processor seconds) over log(devices), by least squares."""
    counts, seconds = (np.log([run[key] for run in runs]) for key in ("devices", "cpu_s"))
    return float(np.polyfit(counts, seconds, 1)[0])


def main(counts: list[int]) -> None:
    partial, runs = partial_runs("scale_devices")
    for count in sorted({*counts} - {run["devices"] for run in runs}):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            runs.append(measured_run(many_devices(count, place), place / "run"))
        print({key: value for key, value in runs[-1].items() if key != "stages_s"}, flush=True)
        partial.write_text(json.dumps(runs))
    slope = round(exponent(runs), 3)
    write_benchmark(
        "scale_devices",
        slope,
        (slope, slope),
        {"runs": runs, "interval": "one seed, one run of each size"},
    )
    partial.unlink()


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [500, 5000])
