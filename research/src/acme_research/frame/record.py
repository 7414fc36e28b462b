"""The result file that every benchmark leaves, and how times are compared."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats

RESULTS = Path(__file__).parent / "results"


def cpu_times(actions: dict[str, Callable[[], object]], repetitions: int) -> dict[str, np.ndarray]:
    """CPU seconds of each action, shape ``(repetitions,)``, measured in turns after a warm-up.

    CPU time of one thread, so that what else the machine does does not count.
    """
    torch.set_num_threads(1)
    seconds = {name: np.zeros(repetitions) for name in actions}
    for repetition in range(-2, repetitions):
        for name, action in actions.items():
            start = time.process_time()
            action()
            if repetition >= 0:
                seconds[name][repetition] = time.process_time() - start
    return seconds


def ratio_of_medians(ours: np.ndarray, rival: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median ÷ median, with its 95 % interval by drawing repetitions again."""
    picks = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    drawn = np.median(ours[picks], axis=1) / np.median(rival[picks], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(ours) / np.median(rival)), (float(low), float(high))


def student_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean, by seed; the mean itself for a single one."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else 0.0
    return float(values.mean() - half), float(values.mean() + half)


def write_result(
    name: str,
    value: float,
    unit: str,
    better: Literal["higher", "lower"],
    goal: float,
    rival: str,
    seeds: list[int],
    interval: tuple[float, float],
    seconds: float,
    details: dict[str, Any],
) -> Path:
    """Write ``results/NAME.json``.

    ``value`` is measured against ``rival`` in the same run; ``interval`` is its 95 % interval
    over the seeds (or repetitions), ``seconds`` how long the benchmark took. ``details`` holds
    what else the printed table shows.
    """
    result = {
        "name": name,
        "value": value,
        "unit": unit,
        "better": better,
        "goal": goal,
        "rival": rival,
        "seeds": seeds,
        "interval": list(interval),
        "seconds": round(seconds, 1),
        "hardware": hardware(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "details": details,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def hardware() -> str:
    """The processor and its cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit, with ``-dirty`` where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()
