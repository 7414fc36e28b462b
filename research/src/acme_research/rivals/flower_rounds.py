"""Rounds of federated averaging in Flower's simulation: its server, clients, messages and FedAvg.

A client sends back, trained, those tensors that it was sent, and keeps the others of its model: who
asks for less than the whole model leaves the rest on the devices, and no message holds it.
"""

# pyright: reportMissingImports=false
import logging
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.models.features import Classifier
from acme_fleet.models.storage import (
    backbone_from,
    config_document,
    read_tensors,
    with_prefix,
    without_prefix,
    write_tensors,
)
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

State = Mapping[str, Tensor]
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Clients:
    """Training on devices; it goes along with every message, so their data are in files.

    Attributes:
        folder: of the model that all begin with and of each client's samples, see :meth:`keep`.
        training: of one round.
        augment: changes each batch.
        draw: the generator of a way, a round and a client, both counted from 0.
        device: ``cpu`` or ``cuda``; all clients share the one GPU.
    """

    folder: Path
    training: Training
    augment: Callable[[Samples, torch.Generator], Samples] | None
    draw: Callable[..., torch.Generator]
    device: str = "cpu"

    def keep(self, start: Classifier, private: Sequence[Splits]) -> None:
        """Put the first model, and each client's samples, where the clients find them."""
        write_tensors(self._start, start.state_dict(), config_document(start.backbone))
        for client, own in enumerate(private):
            tensors = {}
            for part in _PARTS:
                samples = getattr(own, part)
                told = {"labels": samples.labels, "bytes": samples.stored_bytes}
                told |= with_prefix("inputs", samples.inputs)
                tensors |= with_prefix(part, told)
            write_tensors(self._own(client), tensors, {})

    def start(self) -> Classifier:
        """The model that all begin with."""
        tensors, config = read_tensors(self._start)
        classes, hidden = tensors["head.weight"].shape
        backbone = backbone_from(config, without_prefix("backbone", tensors))
        model = Classifier(backbone, nn.Linear(hidden, classes)).requires_grad_(True)
        model.load_state_dict(tensors)
        return model

    def samples(self, client: int) -> Splits:
        """A client's samples."""
        tensors, _ = read_tensors(self._own(client))
        parts = [without_prefix(part, tensors) for part in _PARTS]
        return Splits(
            *(Samples(without_prefix("inputs", t), t["labels"], t["bytes"]) for t in parts)
        )

    @property
    def _start(self) -> Path:
        return self.folder / "start.safetensors"

    def _own(self, client: int) -> Path:
        return self.folder / f"{client}.safetensors"


@dataclass(frozen=True)
class Best:
    """The round with the best mean validation accuracy: what all had in common after it."""

    number: int
    state: State
    validation: list[float]
    test: list[float]


# --- on a device ------------------------------------------------------------------------------


def client_app(clients: Clients) -> ClientApp:
    """A device's part in a round."""
    app = ClientApp()
    app.train()(partial(_train, clients))
    app.evaluate()(partial(_evaluate, clients))
    return app


def _train(clients: Clients, message: Message, context: Context) -> Message:
    model, own, client = _mine(clients, message, context)
    config = message.content["config"]
    draw = clients.draw(config["way"], config["server-round"] - 1, client)
    fit(CLASSIFICATION, model, own.train, clients.training, draw, augment=clients.augment)
    trained, wanted = model.cpu().state_dict(), message.content["arrays"]
    kept = {name: value for name, value in trained.items() if name not in wanted}
    context.state[config["way"]] = ArrayRecord(torch_state_dict=kept)
    arrays = ArrayRecord(torch_state_dict={name: trained[name] for name in wanted})
    metrics = MetricRecord({"num-examples": len(own.train)})
    return _reply(message, client, {"arrays": arrays, "metrics": metrics})


def _evaluate(clients: Clients, message: Message, context: Context) -> Message:
    model, own, client = _mine(clients, message, context)
    accuracies = {
        p: evaluate(CLASSIFICATION, model.eval(), getattr(own, p)).score for p in _PARTS[1:]
    }
    metrics = MetricRecord({"num-examples": len(own.train), **accuracies})
    return _reply(message, client, {"metrics": metrics})


def _reply(
    message: Message, client: int, records: dict[str, ArrayRecord | MetricRecord]
) -> Message:
    sender = ConfigRecord({"client": client})
    return Message(RecordDict({**records, "sender": sender}), reply_to=message)


def _mine(clients: Clients, message: Message, context: Context) -> tuple[Classifier, Splits, int]:
    """The client's model: as all began, with what it kept itself, with what it is sent."""
    torch.set_num_threads(1)
    model, way = clients.start(), message.content["config"]["way"]
    state = dict(model.state_dict())
    if way in context.state:
        state |= context.state[way].to_torch_state_dict()
    model.load_state_dict(state | message.content["arrays"].to_torch_state_dict())
    client = int(context.node_config["partition-id"])
    return model.to(clients.device), clients.samples(client), client


# --- on the server ----------------------------------------------------------------------------


class BestRound(FedAvg):
    """FedAvg of all clients, in one order whoever answers first; it knows its best round."""

    best: Best

    def __init__(self, clients: int) -> None:
        super().__init__(
            min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients
        )
        self._clients = clients

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the clients' models, each counted by its number of samples."""
        self._arrays, metrics = super().aggregate_train(server_round, self._in_order(replies))
        return self._arrays, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep the round if it is the best so far."""
        ordered = self._in_order(replies)
        told = [reply.content["metrics"] for reply in ordered]
        validation, test = ([metrics[p] for metrics in told] for p in _PARTS[1:])
        so_far = getattr(self, "best", None)
        if so_far is None or statistics.fmean(validation) > statistics.fmean(so_far.validation):
            state = self._arrays.to_torch_state_dict()
            self.best = Best(server_round, state, validation, test)
        return super().aggregate_evaluate(server_round, ordered)

    def _in_order(self, replies: Iterable[Message]) -> list[Message]:
        """Replies by client: the order of a sum decides how it is rounded.

        Raises:
            RuntimeError: if a client has failed or is missing.
        """
        found = list(replies)
        failed = [reply.error.reason for reply in found if reply.has_error()]
        if failed or len(found) != self._clients:
            raise RuntimeError(f"{len(found)} of {self._clients} clients answered; {failed}")
        return sorted(found, key=lambda reply: reply.content["sender"]["client"])


def server_app(
    clients: int, rounds: int, ways: Mapping[str, State], found: dict[str, Best]
) -> ServerApp:
    """One way after the other; ``found`` gets the best round of each while the server runs.

    ``ways`` are, by name, the tensors that the clients have in common, as they begin.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for way, start in ways.items():
            strategy, config = BestRound(clients), ConfigRecord({"way": way})
            arrays = ArrayRecord(torch_state_dict=dict(start))
            asked = {"train_config": config, "evaluate_config": config}
            strategy.start(grid, arrays, num_rounds=rounds, timeout=math.inf, **asked)
            found[way] = strategy.best

    return app


def simulate(
    clients: Clients, number: int, rounds: int, ways: Mapping[str, State]
) -> dict[str, Best]:
    """The best round of each way, see :func:`server_app`.

    ``number`` clients run on Ray, one core each, as many at once as there are cores.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Clients see the GPU, none of which is set aside for one of them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found: dict[str, Best] = {}
    run_simulation(
        server_app=server_app(number, rounds, ways, found),
        client_app=client_app(clients),
        num_supernodes=number,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return found
