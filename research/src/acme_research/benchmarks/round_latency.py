"""Seconds of a tiny round over the network engine: one edge, four devices, all on this machine.

A round is two questions to every device. What the devices compute is subtracted; what is left is
what the engine costs: Flower's polling, its process for every message, TLS, the proxy. The rival
is the same run on the embedded link. What the persistent role and the warm fork save is measured
by starting what they replace.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.sources.files import read_digits
from acme_fleet.pipeline import customize
from acme_fleet.runs.events import Event, messages_of, stages_of
from acme_fleet.runs.journal import read_events
from acme_research.frame.intervals import bootstrap_interval
from acme_research.frame.loopback import Hosts, cpu_s, descendants, hosts_up, of_process
from acme_research.frame.record import write_benchmark
from acme_research.frame.settings import benchmark_config, changed

_ROUNDS = 8
_SETTLE_S, _IDLE_S = 30.0, 40.0
_COLD = {
    "a role with torch": "import acme_fleet.device.client, acme_fleet.data.partition",
    "flwr-clientapp": "from flwr.supernode.cli import flwr_clientapp; import flwr.clientapp",
}


def tiny(devices: int, folder: Path, rounds: int = _ROUNDS) -> Fleet:
    """Handwritten digits as a file of one's own data: hosts do not load the library they are in."""
    digits = read_digits()
    path = folder / "digits.npz"
    np.savez(path, images=digits.items, labels=digits.labels)
    names = [{"name": f"d{i}", "storage": "60 kB"} for i in range(devices)]
    own = {
        "data": {"train": str(path)},
        "personalization": {"rounds": rounds},
        "clusters": [{"name": "north", "devices": names}],
    }
    return Fleet.parse(changed(benchmark_config("round_latency"), own))


def rounds_of(events: list[Event]) -> dict[str, np.ndarray]:
    """Seconds of each round, and of what its slowest device computed in it; shape (rounds,)."""
    messages = messages_of(events)
    starts = [m.at_s for m in messages if (m.type, m.receiver) == ("RoundStart", "d0")]
    done: dict[str, list[float]] = {}
    for message in messages:
        if message.type == "RoundReport":
            done.setdefault(message.sender, []).append(message.at_s)
    ends = np.max([times[: len(starts)] for times in done.values()], axis=0)
    stages, names = stages_of(events), [f"round {n}" for n in range(1, len(starts) + 1)]
    computed = [max(e.seconds for e in stages if e.stage == name) for name in names]
    return {"total": ends - np.array(starts), "computed": np.array(computed)}


def over_network(devices: int, rounds: int = _ROUNDS) -> dict[str, Any]:
    """One run on hosts of their own; rounds, and what the processes held and used."""
    folder = Path(tempfile.mkdtemp(prefix="acme-"))
    try:
        fleet = tiny(devices, folder, rounds)
        begun = time.monotonic()
        with hosts_up(Hosts(folder, fleet, {"grace_s": 120}), timeout_s=600) as hosts:
            up = time.monotonic() - begun
            idle = _idle(hosts)
            before = {name: _cpu(hosts, name) for name in ("north", "d0")}
            run, memory = hosts.run(), {}
            while run.poll() is None:
                time.sleep(1)
                memory = {name: _memory(hosts, name) for name in ("cloud", "north", "d0")}
            assert run.returncode == 0, hosts.log("run")
            used = {name: _cpu(hosts, name) - cpu for name, cpu in before.items()}
            events = read_events(folder / "run" / "events.jsonl")
        return {
            "rounds": rounds_of(events),
            "up_s": round(up, 1),
            "run_s": round(time.monotonic() - begun - up - _SETTLE_S - _IDLE_S, 1),
            "idle_cpu_share": idle,
            "memory_mb": memory,
            "cpu_s": {name: round(seconds, 1) for name, seconds in used.items()},
            "bytes": sum(message.size_bytes for message in messages_of(events)),
            "messages": len(messages_of(events)),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _idle(hosts: Hosts) -> dict[str, float]:
    """Processor seconds a second of an edge's and a device's host while nothing is asked."""
    time.sleep(_SETTLE_S)  # what was started last is still loading torch
    before = {name: _cpu(hosts, name) for name in ("north", "d0")}
    time.sleep(_IDLE_S)
    return {name: round((_cpu(hosts, name) - cpu) / _IDLE_S, 4) for name, cpu in before.items()}


def _memory(hosts: Hosts, name: str) -> float:
    """Proportional set size of a host's processes, MB."""
    files = (of_process(pid, "smaps_rollup") for pid in descendants(hosts.processes[name].pid))
    lines = (line for file in files for line in file.splitlines() if line.startswith("Pss:"))
    return round(sum(int(line.split()[1]) for line in lines) / 1000, 1)


def _cpu(hosts: Hosts, name: str) -> float:
    """Processor seconds of a host's processes, and of those that they waited for."""
    return sum(map(cpu_s, descendants(hosts.processes[name].pid)))


def cold_start(code: str) -> float:
    """Processor seconds of a process that only imports; the median of three."""
    found = []
    for _ in range(3):
        before = sum(os.times()[2:4])  # of children, as user and in the kernel
        subprocess.run([sys.executable, "-c", code], check=True)
        found.append(sum(os.times()[2:4]) - before)
    return round(float(np.median(found)), 2)


def main() -> None:
    network = over_network(4)
    with tempfile.TemporaryDirectory() as folder:
        customize(tiny(4, Path(folder)), Path(folder) / "run")
        embedded = rounds_of(read_events(Path(folder) / "run" / "events.jsonl"))
    cold = {name: cold_start(code) for name, code in _COLD.items()}
    total = network["rounds"]["total"]
    overhead = total - network["rounds"]["computed"]
    low, high = bootstrap_interval(lambda picks: np.median(total[picks], axis=1), len(total))
    details = {
        "round_s": np.round(total, 2).tolist(),
        "overhead_s": np.round(overhead, 2).tolist(),
        "embedded_round_s": np.round(embedded["total"], 3).tolist(),
        "cold_start_cpu_s": cold,
        "load_average": os.getloadavg()[0],
        **{k: v for k, v in network.items() if k != "rounds"},
    }
    write_benchmark(
        "round_latency", round(float(np.median(total)), 2), (round(low, 2), round(high, 2)), details
    )
    print(json.dumps(details, indent=1))


if __name__ == "__main__":
    main()
