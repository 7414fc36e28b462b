"""The load of a device, an edge and the cloud: measured with some device hosts, extrapolated.

Every device host is real: SuperNode, role, its own keys and disk. Processor seconds and memory are
counted for the edge's host and for one device's, so that sharing one machine does not matter to
them; the seconds of a round are this machine's.

    python -m acme_research.benchmarks.network_scale 4 8 16  # goes on with those that are missing
    python -m acme_research.benchmarks.network_scale refit  # what was measured so far, again
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
from scipy.optimize import nnls

from acme_fleet.edge.similarity import distance_matrix
from acme_fleet.network.hosts.waiting_room import HOLD_S
from acme_research.benchmarks.round_latency import over_network
from acme_research.frame.places import RESULTS
from acme_research.frame.record import partial_runs, write_benchmark

_ROUNDS = 3
# Between a SuperNode's requests: the hold with its own pause, and heartbeats; fixed in Flower 1.41.
_POLL_S, _BEAT_S = 3.0 + HOLD_S, 20.0
_FLEETS = [(1, 100), (10, 1_000), (100, 100_000), (1_000, 1_000_000)]  # edges, devices


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope by least squares, neither below zero."""
    (start, slope), _ = nnls(np.column_stack([np.ones_like(x), x]), y)
    return float(start), float(slope)


def fit(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Constants of the model, from runs of different size."""
    devices = np.array([run["devices"] for run in runs], dtype=float)
    asked = devices * (3 + 2 * _ROUNDS)  # questions to devices in a run
    idle = np.array([run["idle_cpu_share"]["north"] for run in runs])
    memory = np.array([run["memory_mb"]["north"] for run in runs])
    idle0, idle1 = line(devices, idle)
    seconds = np.array([run["run_s"] for run in runs])
    working = np.array([r["cpu_s"]["north"] for r in runs]) - (idle0 + idle1 * devices) * seconds
    work0, work1 = line(asked, working)
    memory0, memory1 = line(devices, memory)
    one_idle = np.array([run["idle_cpu_share"]["d0"] for run in runs])
    one_working = np.array([run["cpu_s"]["d0"] for run in runs]) - one_idle * seconds
    return {
        "edge_idle_cpu_share": idle0,
        "edge_idle_cpu_share_per_device": idle1,
        "edge_cpu_s_per_run": work0,
        "edge_cpu_s_per_question": work1,
        "edge_memory_mb": memory0,
        "edge_memory_mb_per_device": memory1,
        "device_idle_cpu_share": float(one_idle.mean()),
        "device_memory_mb": float(np.mean([run["memory_mb"]["d0"] for run in runs])),
        "device_cpu_s_per_question": float(np.mean(one_working / (3 + 2 * _ROUNDS))),
        "bytes_per_device": float(np.mean([run["bytes"] / run["devices"] for run in runs])),
    }


def similarity_s_per_pair(devices: int = 24, samples: int = 32, hidden: int = 64) -> float:
    """Processor seconds of one distance (Eq. 19) between feature samples of the usual size."""
    draw = np.random.default_rng(0)
    features = [draw.normal(size=(samples, hidden)) for _ in range(devices)]
    begun = time.process_time()
    distance_matrix(features)
    return (time.process_time() - begun) / (devices * (devices - 1) / 2)


def predict(model: dict[str, float], edges: int, devices: int) -> dict[str, float]:
    """Load of one edge and of the cloud; the cloud's SuperLink bears an edge as one a device."""
    each = devices / edges
    idle = model["edge_idle_cpu_share_per_device"]
    memory_mb = model["edge_memory_mb"] + model["edge_memory_mb_per_device"] * each
    return {
        "edges": edges,
        "devices": devices,
        "devices_per_edge": each,
        "edge_requests_a_second": each * (1 / _POLL_S + 1 / _BEAT_S),
        "edge_idle_cores": model["edge_idle_cpu_share"] + idle * each,
        "edge_cpu_s_per_round": 2 * each * model["edge_cpu_s_per_question"],
        "edge_similarity_s": model["edge_similarity_s_per_pair"] * each * (each - 1) / 2,
        "edge_memory_gb": memory_mb / 1e3,
        "cloud_requests_a_second": edges * (1 / _POLL_S + 1 / _BEAT_S),
        "cloud_idle_cores": model["edge_idle_cpu_share"] + idle * edges,
    }


def main() -> None:
    (partial, runs), refit = partial_runs("network_scale"), sys.argv[1:] == ["refit"]
    if refit and not runs:
        runs = json.loads((RESULTS / "network_scale.json").read_text())["details"]["runs"]
    asked = [] if refit else map(int, sys.argv[1:] or ["4", "8", "16"])
    for devices in sorted({*asked} - {run["devices"] for run in runs}):
        run = over_network(devices, _ROUNDS)
        rounds = run.pop("rounds")
        run |= {"devices": devices, "load_average": os.getloadavg()[0]}
        runs.append(run | {name: np.round(s, 2).tolist() for name, s in rounds.items()})
        print(json.dumps(runs[-1]))
        partial.write_text(json.dumps(runs))
    model = fit(runs) | {"edge_similarity_s_per_pair": similarity_s_per_pair()}
    idle0 = model["edge_idle_cpu_share"]
    wall = (1 - idle0) / max(1e-9, model["edge_idle_cpu_share_per_device"])
    alone = [(1 - idle0) * r["devices"] / (r["idle_cpu_share"]["north"] - idle0) for r in runs]
    predicted = [predict(model, *fleet) for fleet in _FLEETS]
    write_benchmark(
        "network_scale",
        round(wall),
        (round(min(alone)), round(max(alone))),
        {"runs": runs, "model": model, "predicted": predicted},
        seconds=sum(run["up_s"] + run["run_s"] for run in runs),
    )
    partial.unlink(missing_ok=True)
    print(json.dumps(model, indent=1))


if __name__ == "__main__":
    main()
