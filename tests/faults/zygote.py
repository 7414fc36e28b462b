"""A process that has imported everything and forks for each run, so that a killed run costs little.

It reads jobs as lines of JSON and answers each with a line when the run is over. A run can be
killed at its n-th step on the disk or after some processor seconds, see files of limited size only,
and live at another time.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from sklearn import datasets

from acme_fleet import pipeline  # noqa: F401 - a run's imports, before the fork
from acme_fleet.config.fleet import Fleet
from acme_fleet.device import client
from acme_fleet.errors import AcmeError
from acme_fleet.pipeline import customize
from acme_fleet.report.page import plots
from acme_fleet.runs import journal


def _prepare() -> None:
    """Leave out work that takes time and changes no model."""
    torch.set_num_threads(1)
    datasets.load_digits = functools.cache(datasets.load_digits)
    datasets.load_digits()
    plots.svg = lambda *_: "<svg></svg>"
    client.measure_latency = lambda *_: 0.001  # as many digits in every message


def _count_steps(kill_at: int | None) -> list[int]:
    """Kill this process before its n-th step on the disk; a killed process loses no written page,
    so nothing waits for the disk.
    """
    steps = [0]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            steps[0] += 1
            if steps[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **options)

        return step

    os.fsync = counted(lambda _: None)
    for name in ("replace", "unlink", "open", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    return steps


def _run(job: dict[str, Any]) -> int:
    if (most := job.get("most_bytes")) is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if (days := job.get("clock_days")) is not None:
        now = datetime.now(UTC) + timedelta(days=days)
        journal._now = lambda: now.isoformat(timespec="milliseconds")
    steps = _count_steps(job.get("kill_at"))
    if (seconds := job.get("kill_after_s")) is not None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process at once
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        customize(Fleet.from_yaml(job["fleet"]), job["run"], resume=True)
    except AcmeError as error:
        print(error)  # noqa: T201 - told as the run's outcome
        return 2
    print(json.dumps({"steps": steps[0]}))  # noqa: T201 - the same
    return 0


def _forked(job: dict[str, Any]) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = Path(job["told"])
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with told.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = _run(job)
        except BaseException:  # noqa: BLE001 - told as the run's outcome
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    return {"code": os.waitstatus_to_exitcode(status), "cpu_s": spent}


def main() -> None:
    """Serve jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    _prepare()
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
