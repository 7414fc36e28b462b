"""Local training of 500 devices: together in one process, and in Flower's own simulation.

In the environment of ``make .venv-network/.done`` with ``pip install -c constraints-flower.txt -e
'research[simulation]'``: ``python -m acme_research.benchmarks.batched_vs_flower``. Both do the work
of ``batched_devices.py``. Flower's simulation starts Ray; one message to every virtual node that
changes nothing comes first, so that neither the start nor an import is counted. A node has one
core, and as many work as there are cores.
"""

# pyright: reportMissingImports=false
import time

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from acme_research.benchmarks.batched_devices import fleet, one_by_one, together
from acme_research.frame.record import wall_times, write_benchmark

DEVICES, TURNS = 500, 3

client, server = ClientApp(), ServerApp()
seconds: dict[str, np.ndarray] = {}


@client.train()
def train(message: Message, context: Context) -> Message:
    """One device's local training; what it sends back is as small as can be."""
    torch.set_num_threads(1)
    if message.content["order"]["train"]:
        number = int(context.node_config["partition-id"])
        one_by_one(list(fleet(range(number, number + 1))))
    return Message(RecordDict({"result": MetricRecord({"done": 1})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """The same work in turns: by all virtual nodes, and together here."""
    while len(list(grid.get_node_ids())) < DEVICES:
        time.sleep(0.5)

    def ask(train: bool) -> None:
        content = RecordDict({"order": ConfigRecord({"train": train})})
        messages = [Message(content, node, "train") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        if len(replies) != DEVICES or any(reply.has_error() for reply in replies):
            raise SystemExit("not every virtual node has answered")

    ask(train=False)
    seconds.update(
        wall_times(
            {
                "Flower": lambda: ask(train=True),
                "together": lambda: together(list(fleet(range(DEVICES)))),
            },
            TURNS,
        )
    )


if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=DEVICES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    ratios = np.sort(seconds["Flower"] / seconds["together"])
    details = {name: [round(float(s), 2) for s in values] for name, values in seconds.items()}
    interval = float(ratios[0]), float(ratios[-1])
    write_benchmark("batched_vs_flower", float(np.median(ratios)), interval, details)
