"""A fleet of any number of devices in one cluster, on digits with noise; its run in one process."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.sources.files import read_digits
from acme_fleet.pipeline import customize
from acme_research.frame.settings import benchmark_config, changed

_EACH, _PUBLIC, _NOISE = 20, 2000, 20  # samples of a device, of the cloud, and levels of noise


def many_devices(
    count: int, folder: Path, seed: int = 0, each: int = _EACH, **personalization: Any
) -> Fleet:
    """Devices of three kinds of data, in one cluster, with ``each`` samples and small headers.

    ``folder`` gets the data set; ``personalization`` are settings in place of the usual ones.
    """
    raw, draw = read_digits(), np.random.default_rng(seed)
    samples = each * count + _PUBLIC
    index = draw.integers(len(raw.items), size=samples)
    images = raw.items[index] + draw.integers(-_NOISE, _NOISE + 1, (samples, *raw.items.shape[1:]))
    data = folder / f"digits-{count}-{seed}.npz"
    np.savez(data, images=images.clip(0, 255).astype(np.uint8), labels=raw.labels[index])
    devices = [{"name": f"d{n}", "storage": "60 kB"} for n in range(count)]
    own = {
        "seed": seed,
        "data": {"train": str(data), "public": _PUBLIC / samples},
        "personalization": personalization,
        "clusters": [{"name": "north", "devices": devices}],
    }
    return Fleet.parse(changed(benchmark_config("many_devices"), own))


def measured_run(fleet: Fleet, out: Path) -> dict[str, Any]:
    """Run a fleet in a process of its own, so that its memory is its own; what it cost."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".yaml")
    path.write_text(fleet.to_yaml())
    command = [sys.executable, "-m", __spec__.name, str(path), str(out)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(lines.splitlines()[-1])


def _main(path: Path, out: Path) -> None:
    begun, clock = time.process_time(), time.perf_counter()
    summary = customize(Fleet.from_yaml(path), out)
    files = [file for file in out.rglob("*") if file.is_file()]
    scores = [device.accuracy for device in summary.devices]
    result = {
        "devices": len(scores),
        "cpu_s": time.process_time() - begun,
        "wall_s": time.perf_counter() - clock,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "files": len(files),
        "disk_mb": sum(file.stat().st_size for file in files) / 1e6,
        "report_mb": (out / "report.html").stat().st_size / 1e6,
        "summary_mb": (out / "summary.json").stat().st_size / 1e6,
        "accuracy": float(np.mean(scores)),
        "stages_s": summary.seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
