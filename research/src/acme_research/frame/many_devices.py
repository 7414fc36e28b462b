"""A fleet of any number of devices in one cluster, on digits with noise; its run in one process."""

from __future__ import annotations

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

_EACH, _PUBLIC, _NOISE = 20, 2000, 20  # samples of a device, of the cloud, and levels of noise
_CLASSES = (["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8", "9"])


def many_devices(
    count: int, folder: Path, seed: int = 0, each: int = _EACH, **personalization: Any
) -> Fleet:
    """Devices of three kinds of data, small headers, 200 trained at a time.

    Args:
        count: of the devices, all in one cluster.
        folder: gets the data set.
        seed: of data and fleet.
        each: samples of a device.
        personalization: settings of Algorithm 2 in place of the usual ones.
    """
    raw, draw = read_digits(), np.random.default_rng(seed)
    samples = each * count + _PUBLIC
    index = draw.integers(len(raw.items), size=samples)
    images = raw.items[index] + draw.integers(-_NOISE, _NOISE + 1, (samples, *raw.items.shape[1:]))
    data = folder / f"digits-{count}-{seed}.npz"
    np.savez(data, images=images.clip(0, 255).astype(np.uint8), labels=raw.labels[index])
    training = {"epochs": 10, "batch_size": 32, "learning_rate": 0.01}
    search = {"steps": 3, "children_per_step": 2, "weight_updates_per_step": 1}
    local = {"epochs": 2, "batch_size": 16, "learning_rate": 0.02}
    rounds = {"rounds": 2, "local": local, "feature_samples": 12, "mix": "both"}
    content = {
        "name": "many",
        "seed": seed,
        "compute": "float32",
        "devices_at_once": 200,
        "data": {
            "source": "arrays",
            "train": str(data),
            "public": _PUBLIC / samples,
            "partition": {"scheme": "pathological", "classes": _CLASSES},
        },
        "reference": {
            "model": {"hidden_size": 16, "layers": 2, "heads": 2, "neurons": 32},
            "training": training,
        },
        "backbone": {
            "widths": [0.5, 1.0],
            "depths": [1, 2],
            "precisions": ["float32"],
            "importance_samples": 64,
            "distillation": {"training": {"epochs": 2, "learning_rate": 0.003}},
        },
        "header": {"blocks": 1, "channels": 6},
        "search": {**search, "final_samples": 3, "rivals": False, "fine_tuning": {"epochs": 1}},
        "personalization": rounds | personalization,
        "clusters": [
            {
                "name": "north",
                "devices": [{"name": f"d{n}", "storage": "60 kB"} for n in range(count)],
            }
        ],
    }
    return Fleet.parse(content)


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
