"""FedAvg and FedPer of the evaluation against Flower's own strategy, on Flower's own messages."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from acme_fleet.cloud.reference import untrained_reference
from acme_fleet.models.features import Classifier

pytestmark = pytest.mark.network

pytest.importorskip("flwr")
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "experiments"))
from reproduction.bench import Bench, Options  # noqa: E402
from reproduction.federated import OWN, Clients, rounds  # noqa: E402

_ROUNDS, _HEAD = 3, "head.weight"


class _InProcess(Grid):
    """Messages go to the clients at once, each of which keeps a context of its own."""

    run: Any = None

    def __init__(self, app: ClientApp, nodes: int) -> None:
        empty: dict[str, Any] = {}
        self._app = app
        self._contexts = {
            node: Context(0, node, empty, RecordDict(), empty) for node in range(1, nodes + 1)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [self._app(m, self._contexts[m.metadata.dst_node_id]) for m in messages]

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def _client(clients: Clients, *, personal: bool) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number, client = int(message.content["config"]["server-round"]) - 1, context.node_id - 1
        state = message.content["arrays"].to_torch_state_dict()
        if personal and "own" in context.state:
            state |= context.state["own"].to_torch_state_dict()
        trained = clients.trained(number, client, state)
        own = {name: value for name, value in trained.items() if name.startswith(OWN)}
        context.state["own"] = ArrayRecord(torch_state_dict=own)
        samples = MetricRecord({"num-examples": clients.samples[client]})
        content = {"arrays": ArrayRecord(torch_state_dict=trained), "metrics": samples}
        return Message(RecordDict(content), reply_to=message)

    return app


def _by_flower(clients: Clients, start: dict[str, Tensor], *, personal: bool) -> list[Any]:
    """What all have in common after each round, and then what each client has of its own."""
    grid = _InProcess(_client(clients, personal=personal), len(clients.samples))
    common: list[Any] = []
    FedAvg(fraction_evaluate=0.0).start(
        grid,
        ArrayRecord(torch_state_dict=start),
        num_rounds=_ROUNDS,
        evaluate_fn=lambda _, arrays: common.append(arrays.to_torch_state_dict()),
    )
    own = [context.state["own"].to_torch_state_dict() for context in grid._contexts.values()]
    return [*common[1:], own]


@pytest.fixture(autouse=True)
def as_in_a_process_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask for the run that their process belongs to."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Options("smoke", 1, None, tmp_path, tmp_path), 0, "fig7a")


@pytest.mark.parametrize("personal", [False, True])
def test_rounds_are_those_of_flowers_strategy(bench: Bench, personal: bool):
    cluster, public = bench.fleet.clusters[0], bench.world.public
    model: Classifier = untrained_reference(bench.fleet, public, bench.world.classes)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    clients = Clients(model, cluster, bench, "a test")
    *common, own = _by_flower(clients, start, personal=personal)
    ours = list(itertools.islice(rounds(clients, start, personal=personal), _ROUNDS))
    for theirs, states in zip(common, ours, strict=True):
        for name, value in states[0].items():
            if not (personal and name.startswith(OWN)):
                torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(start[_HEAD], ours[-1][0][_HEAD], atol=1e-3)
    if personal:
        for theirs, state in zip(own, ours[-1], strict=True):
            torch.testing.assert_close(
                state["head.weight"], theirs["head.weight"], atol=1e-5, rtol=1e-4
            )
