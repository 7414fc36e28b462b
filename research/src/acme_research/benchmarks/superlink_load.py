"""The cost of idle devices to the SuperLink of their server: real requests of many, no models.

Each device is a thread that asks for work through the proxy, with TLS, a registered key and a
signature of its own, as often as Flower's SuperNode does, heartbeats included. Processor seconds
are counted for the server's processes alone, so that one machine may hold them all.

    python -m acme_research.benchmarks.superlink_load 10 50 100
"""

# pyright: reportMissingImports=false
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supernode.fleet_http_connection import http_request_response

from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.waiting_room import HOLD_S
from acme_research.frame.loopback import cpu_s, descendants, free_ports, wait_for
from acme_research.frame.record import write_benchmark

_POLL_S = 3.0  # between an answer and a SuperNode's next request; fixed in Flower 1.41
_MEASURED_S = 92.0  # four times a device's pause and its wait


@contextmanager
def server(folder: Path, names: list[str]) -> Iterator[tuple[int, int]]:
    """A cloud host that knows as many edge servers; its process and its port."""
    device = {"storage": "1 MB"}
    clusters = [{"name": n, "devices": [{"name": f"{n}-x", **device}]} for n in names]
    (folder / "fleet.yaml").write_text(yaml.safe_dump({"clusters": clusters}))
    certificates.make_authority(folder / "keys")
    certificates.make_server(folder / "keys", folder / "keys", ["127.0.0.1"])
    (folder / "keys" / certificates.PEERS).mkdir()
    for name in names:
        certificates.make_node(folder / name)
        public = (folder / name / certificates.NODE_PUBLIC).read_bytes()
        (folder / "keys" / certificates.PEERS / f"{name}.pub").write_bytes(public)
    port, local = free_ports(2)
    site = {"role": "cloud", "fleet": "fleet.yaml", "state": "state", "keys": "keys"}
    ports = {"address": "127.0.0.1", "port": port, "local_port": local}
    (folder / "cloud.yaml").write_text(yaml.safe_dump(site | ports))
    command = [str(Path(sys.executable).with_name("acme")), "up", "cloud", "--config"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, str(folder / "cloud.yaml")], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: "\nup\n" in log.read_text(), 60 + 5 * len(names))
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def ask(folder: Path, port: int, stopped: threading.Event, seconds: list[float]) -> None:
    """One device: asks until it is told to stop; notes how late each answer was after the hold."""
    private = load_ssh_private_key((folder / certificates.NODE_KEY).read_bytes(), None)
    pair: Any = (private, private.public_key())
    authority = (folder.parent / "keys" / certificates.CA).read_bytes()
    with http_request_response(f"127.0.0.1:{port}", False, authority, pair) as connection:
        receive = connection[1]
        while not stopped.wait(_POLL_S):
            begun = time.monotonic()
            assert receive() is None
            seconds.append(time.monotonic() - begun - HOLD_S)


def load(devices: int) -> dict[str, Any]:
    """Processor seconds a second of a server with so many idle devices, and what they wait."""
    names = [f"n{i}" for i in range(devices)]
    with tempfile.TemporaryDirectory(prefix="acme-") as place:
        folder, begun = Path(place), time.monotonic()
        with server(folder, names) as (process, port):
            registered = time.monotonic() - begun
            stopped, seconds = threading.Event(), []
            places = [(folder / name, port, stopped, seconds) for name in names]
            asking = [threading.Thread(target=ask, args=place) for place in places]
            for thread in asking:
                thread.start()
                time.sleep((_POLL_S + HOLD_S) / devices)  # spread, as devices are
            time.sleep(2 * _POLL_S)
            seconds.clear()
            before, since = _cpu(process), time.monotonic()
            time.sleep(_MEASURED_S)
            used, passed = _cpu(process) - before, time.monotonic() - since
            waits = np.array(seconds)
            stopped.set()
            for thread in asking:
                thread.join()
            # Each asks once in a pause and an answer's time; one that has failed asks no more.
            expected = devices * passed / (_POLL_S + HOLD_S + waits.mean())
            assert abs(len(waits) - expected) < 0.1 * expected + devices, (len(waits), expected)
    return {
        "devices": devices,
        "up_s": round(registered, 1),
        "cores": round(used / passed, 4),
        "requests_a_second": round(len(waits) / passed, 2),
        "answer_s": np.round(np.quantile(waits, [0.5, 0.95]), 4).tolist(),
    }


def _cpu(process: int) -> float:
    return sum(map(cpu_s, descendants(process)))


def main() -> None:
    runs = []
    for devices in map(int, sys.argv[1:] or ["10", "50", "100"]):
        runs.append(load(devices))
        print(runs[-1], flush=True)
    count = np.array([run["devices"] for run in runs], dtype=float)
    cores = np.array([run["cores"] for run in runs])
    each = float(count @ cores / (count @ count))  # nobody asks: nothing is used
    alone = count / cores
    write_benchmark(
        "superlink_load",
        round(1 / each),
        (round(alone.min()), round(alone.max())),
        {"runs": runs, "cores_a_device": each},
    )


if __name__ == "__main__":
    main()
