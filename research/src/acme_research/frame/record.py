"""Result files, with the commit and the machine that they are of, and CPU times."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acme_fleet.profiling.fit import machine_text
from acme_research.frame.intervals import ratio_of_medians
from acme_research.frame.places import RESULTS
from acme_research.frame.settings import benchmark_config

Action = Callable[[], object]
_STARTED = time.perf_counter()


def origin() -> dict[str, str]:
    """The machine, the commit and the time, for a result."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"hardware": machine_text(on_gpu=False), "commit": commit(), "date": now}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` with its origin, and say so."""
    path = RESULTS / f"{name}.json"
    write_record(path, result | origin())
    print(f"wrote {path}")


def partial_runs(name: str) -> tuple[Path, list[dict[str, Any]]]:
    """File of a benchmark's finished runs at this commit, and the runs that it has already."""
    path = RESULTS / f"{name}-{commit()}.partial.json"
    return path, json.loads(path.read_text()) if path.exists() else []


def write_benchmark(
    name: str,
    value: float,
    interval: tuple[float, float],
    details: dict[str, Any],
    seeds: Sequence[int] = (0,),
    seconds: float | None = None,
    instead: Mapping[str, Any] | None = None,
) -> None:
    """Write a benchmark's result, and print it.

    Args:
        name: in ``configs/benchmarks/all.yaml``, which has unit, goal and rival.
        value: measured against the rival in the same run.
        interval: its 95 % interval over the seeds (or repetitions).
        details: what else the printed table shows.
        seeds: one observation each.
        seconds: since the process began unless given.
        instead: of that file's entries, where the run decides what the rival or the unit is.
    """
    told = {"name": name, "value": value} | benchmark_config("all")[name] | (instead or {})
    print(f"{name}: {value:.4g} {told['unit']}, {list(interval)}; goal {told['goal']}")
    took = time.perf_counter() - _STARTED if seconds is None else seconds
    told |= {"seeds": list(seeds), "interval": list(interval), "seconds": round(took, 1)}
    write_result(name, {**told, "details": details})


def write_ratio(name: str, ours: np.ndarray, rival: np.ndarray, details: dict[str, Any]) -> None:
    """Write a benchmark whose value is a median ÷ the other's, see :func:`.ratio_of_medians`."""
    write_benchmark(name, *ratio_of_medians(ours, rival), details)


def cpu_times(actions: Mapping[str, Action], repetitions: int) -> dict[str, np.ndarray]:
    """CPU seconds of each action, shape ``(repetitions,)``, measured in turns after a warm-up.

    CPU time of one thread, so that what else the machine does does not count.
    """
    torch.set_num_threads(1)
    return wall_times(actions, repetitions, time.process_time)


def wall_times(
    actions: Mapping[str, Action], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """The same by the clock, for work on several threads or a GPU."""
    seconds = {name: np.zeros(repetitions) for name in actions}
    for repetition in range(-2, repetitions):
        for name, action in actions.items():
            start = clock()
            action()
            if repetition >= 0:
                seconds[name][repetition] = clock() - start
    return seconds


def print_medians(seconds: dict[str, np.ndarray], digits: int = 0) -> dict[str, float]:
    """Print the median of each action's times, in milliseconds; returns them in seconds."""
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<32}{1000 * median:9.{digits}f} ms")
    return medians


def commit() -> str:
    """The commit, with ``-dirty`` where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()
