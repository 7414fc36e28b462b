"""FedAvg and FedPer over a cluster's devices, with as many passes over private data as ACME takes.

The devices train the whole model: the cluster's backbone with a linear classifier, as small as
what ACME ships. FedPer (Arivazhagan et al. 2019) shares the backbone and leaves every device its
own classifier. Flower runs the rounds (:mod:`.flower_rounds`).
"""

import importlib.util
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from acme_fleet.config.devices import Cluster
from acme_fleet.runs.summary import ClusterSummary
from acme_fleet.seeding import generator
from acme_fleet.training.augmentation import augmentation
from acme_research.frame.bench import Bench
from acme_research.rivals.bounds import shipped_bytes
from acme_research.rivals.shapes import Plain, personal_accuracies

OWN = "head."  # what FedPer leaves on the device


def federated(cluster: Cluster, summary: ClusterSummary, bench: Bench) -> dict[str, Any] | None:
    """Test accuracies by device of FedAvg, plain and with adapted classifiers, and of FedPer.

    Of each the best round by the devices' validation data; a round is one epoch on every device.
    None where Flower with its simulation is not installed (see :meth:`.Bench.piece`).
    """
    if any(importlib.util.find_spec(name) is None for name in ("flwr", "ray")):
        return None
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from acme_research.rivals.flower_rounds import Clients, simulate

    start = bench.recovered(summary.variant).requires_grad_(True)
    everything = start.state_dict()
    ways = {
        "FedAvg": everything,
        "FedPer": {n: value for n, value in everything.items() if not n.startswith(OWN)},
    }
    reference, personalization = bench.fleet.reference, bench.fleet.personalization
    with tempfile.TemporaryDirectory() as folder:
        clients = Clients(
            Path(folder),
            reference.training.model_copy(update={"epochs": 1}),
            augmentation(reference.crop_padding, flip=reference.flip),
            partial(_draw, bench.seed, cluster.name),  # not bench.draw: a bench holds all data
            bench.options.device,
        )
        clients.keep(start, [bench.world.private[device.name] for device in cluster.devices])
        rounds = personalization.training_in_all.epochs
        best = simulate(clients, len(cluster.devices), rounds, ways)
    start.load_state_dict(best["FedAvg"].state)
    model = Plain(start.requires_grad_(False).eval())
    return {
        "FedAvg": best["FedAvg"].test,
        "FedAvg, then adapted": personal_accuracies(model, cluster, bench, "FedAvg"),
        "FedPer": best["FedPer"].test,
        "size_bytes": shipped_bytes(start.backbone, start.head, cluster, bench),
    }


def _draw(seed: int, cluster: str, way: str, *occasion: int) -> torch.Generator:
    return generator(seed, "reproduce", way, cluster, *occasion)
