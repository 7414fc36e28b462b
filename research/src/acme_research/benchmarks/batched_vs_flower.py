"""Local training of 100 devices: together in one process, and in Flower's own simulation.

``pip install -c constraints-flower.txt -e . -e 'research[simulation]'``, then ``python -m
acme_research.benchmarks.batched_vs_flower``. Both do the work of ``batched_devices.py``. Flower's
simulation starts Ray; one message to every virtual node that changes nothing comes first, so that
neither the start nor an import is counted. A node has one core, as many work as there are cores.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import time

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from acme_fleet.device.refinement import train_header
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.benchmarks import batched_devices as work
from acme_research.frame.record import write_benchmark

DEVICES, TURNS, GOAL = 100, 3, 10.0

client, server = ClientApp(), ServerApp()
seconds: list[tuple[float, float]] = []


@client.train()
def train(message: Message, context: Context) -> Message:
    """One device's local training; what it sends back is as small as can be."""
    torch.set_num_threads(1)
    if not message.content["order"]["train"]:
        return Message(RecordDict({"result": MetricRecord({"neurons": 0})}), reply_to=message)
    number = int(context.node_config["partition-id"])
    (device,) = work.fleet(range(number, number + 1))
    _, importance = train_header(
        CLASSIFICATION, device.header, device.features, work.TRAINING, device.generator
    )
    neurons = len(importance.flat())
    return Message(RecordDict({"result": MetricRecord({"neurons": neurons})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """The same work in turns: by all virtual nodes, and together here."""
    while len(list(grid.get_node_ids())) < DEVICES:
        time.sleep(0.5)
    ask(grid, train=False)
    for _ in range(TURNS):
        start = time.perf_counter()
        ask(grid, train=True)
        middle = time.perf_counter()
        work.together(list(work.fleet(range(DEVICES))))
        seconds.append((middle - start, time.perf_counter() - middle))
        print("Flower {:.1f} s, together {:.1f} s".format(*seconds[-1]), flush=True)


def ask(grid: Grid, train: bool) -> None:
    content = RecordDict({"order": ConfigRecord({"train": train})})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    if len(replies) != DEVICES or any(reply.has_error() for reply in replies):
        raise SystemExit("not every virtual node has answered")


if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=DEVICES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    ratios = np.array([flower / together for flower, together in seconds])
    write_benchmark(
        name="batched_vs_flower",
        value=float(np.median(ratios)),
        unit="times faster, 100 devices",
        better="higher",
        goal=GOAL,
        rival=f"Flower's simulation of the same local work on {os.cpu_count()} cores, in turn",
        interval=(float(ratios.min()), float(ratios.max())),
        details={"seconds": [{"Flower": f, "together": t} for f, t in seconds]},
    )
