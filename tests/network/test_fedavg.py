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

_ROUNDS = 3
State = dict[str, Tensor]


class _InProcess(Grid):
    """Messages go to the clients at once, each of which keeps a context of its own."""

    run: Any = None

    def __init__(self, app: ClientApp, nodes: int) -> None:
        empty: dict[str, Any] = {}
        self._app = app
        self.contexts = {
            node: Context(0, node, empty, RecordDict(), empty) for node in range(1, nodes + 1)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [self._app(m, self.contexts[m.metadata.dst_node_id]) for m in messages]

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


def _by_flower(clients: Clients, start: State, *, personal: bool) -> tuple[State, list[State]]:
    """What all have in common after the rounds, and what each client has of its own."""
    grid = _InProcess(_client(clients, personal=personal), len(clients.samples))
    result = FedAvg(fraction_evaluate=0.0).start(
        grid, ArrayRecord(torch_state_dict=start), num_rounds=_ROUNDS
    )
    own = [context.state["own"].to_torch_state_dict() for context in grid.contexts.values()]
    return dict(result.arrays.to_torch_state_dict()), own


@pytest.fixture(autouse=True)
def as_in_a_process_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask for the run that their process belongs to."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One of its clients has few samples, and so little to say."""
    found = Bench(Options("smoke", 1, None, tmp_path, tmp_path), 0, "fig7a")
    first = found.world.private[found.fleet.clusters[0].devices[0].name]
    object.__setattr__(first, "train", first.train[:10])
    return found


@pytest.mark.parametrize("personal", [False, True])
def test_rounds_are_those_of_flowers_strategy(bench: Bench, personal: bool):
    cluster, public = bench.fleet.clusters[0], bench.world.public
    model: Classifier = untrained_reference(bench.fleet, public, bench.world.classes)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    clients = Clients(model, cluster, bench, "a test")
    common, own = _by_flower(clients, start, personal=personal)
    *_, ours = itertools.islice(rounds(clients, start, personal=personal), _ROUNDS)

    @torch.no_grad()
    def answers(state: dict[str, Tensor]) -> Tensor:
        # Not the weights: AdamW moves those without a gradient by the signs of rounding errors.
        model.load_state_dict(state)
        return model.eval()(**public.test.inputs).softmax(dim=1)

    for state, head in zip(ours, own, strict=True):
        theirs = common | (head if personal else {})
        torch.testing.assert_close(answers(state), answers(theirs), rtol=0, atol=2e-3)
        assert (answers(state) - answers(start)).abs().max() > 0.1
