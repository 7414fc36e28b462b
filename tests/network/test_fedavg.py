"""FedAvg and FedPer of the evaluation: by hand, by messages, in Flower's simulation."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from acme_fleet.data.samples import Splits
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.models.features import Classifier
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

pytestmark = pytest.mark.network

pytest.importorskip("flwr")
pytest.importorskip("ray")
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from acme_research.frame.bench import Bench, Options  # noqa: E402
from acme_research.rivals.federated import OWN  # noqa: E402
from acme_research.rivals.flower_rounds import (  # noqa: E402
    Best,
    BestRound,
    Clients,
    client_app,
    server_app,
    simulate,
)

_ROUNDS = 3
State = dict[str, Tensor]


class _InProcess(Grid):
    """Messages go to the clients at once, the last client answers first; all messages are kept."""

    run: Any = None

    def __init__(self, app: ClientApp, nodes: int) -> None:
        self._app = app
        self.seen: list[Message] = []
        self.contexts = {
            1000 - i: Context(0, 1000 - i, {"partition-id": i}, RecordDict(), {})
            for i in range(nodes)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        answers = [self._app(m, self.contexts[m.metadata.dst_node_id]) for m in asked]
        self.seen += [*asked, *answers]
        return answers

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def in_process(
    clients: Clients, number: int, ways: dict[str, State]
) -> tuple[dict[str, Best], _InProcess]:
    found: dict[str, Best] = {}
    grid = _InProcess(client_app(clients), number)
    server_app(number, _ROUNDS, ways, found)(grid, Context(0, 0, {}, RecordDict(), {}))
    return found, grid


def by_hand(
    model: Classifier, clients: Clients, private: list[Splits], way: str
) -> tuple[int, State, list[float], list[float]]:
    """FedAvg's and FedPer's definitions: the best round, its common state, its accuracies."""
    start = copied(model)
    states, outcomes = [start for _ in private], []
    counts = [len(own.train) for own in private]
    for number in range(_ROUNDS):
        trained = []
        for i, (own, state) in enumerate(zip(private, states, strict=True)):
            model.load_state_dict(state)
            draw = clients.draw(way, number, i)
            fit(CLASSIFICATION, model, own.train, clients.training, draw, augment=clients.augment)
            trained.append(copied(model))
        mean = {
            n: sum(c / sum(counts) * of[n] for c, of in zip(counts, trained, strict=True))
            for n in start
        }
        own_names = {n for n in start if way == "FedPer" and n.startswith(OWN)}
        states = [mean | {n: of[n] for n in own_names} for of in trained]
        told: dict[str, list[float]] = {"validation": [], "test": []}
        for own, state in zip(private, states, strict=True):
            model.load_state_dict(state)
            for part, values in told.items():
                values.append(evaluate(CLASSIFICATION, model.eval(), getattr(own, part)).score)
        common = {n: value for n, value in mean.items() if n not in own_names}
        outcomes.append((number + 1, common, told["validation"], told["test"]))
    model.load_state_dict(start)
    return max(outcomes, key=lambda outcome: statistics.fmean(outcome[2]))


def copied(model: Classifier) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def as_in_a_process_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask for the run that their process belongs to."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Options("smoke", 1, None, tmp_path, tmp_path), 0, "fig7a")


@pytest.fixture
def model(bench: Bench) -> Classifier:
    return untrained_reference(bench.fleet, bench.world.public, bench.world.classes)


@pytest.fixture
def ways(model: Classifier) -> dict[str, State]:
    start = copied(model)
    body = {name: value for name, value in start.items() if not name.startswith(OWN)}
    return {"FedAvg": start, "FedPer": body}


@pytest.fixture
def private(bench: Bench) -> list[Splits]:
    """One of the clients has few samples, and so little to say."""
    first, *others = (bench.world.private[d.name] for d in bench.fleet.clusters[0].devices)
    return [Splits(first.train[:10], first.validation, first.test), *others]


@pytest.fixture
def clients(bench: Bench, model: Classifier, private: list[Splits], tmp_path: Path) -> Clients:
    training = bench.fleet.reference.training.model_copy(update={"epochs": 1})
    found = Clients(tmp_path, training, None, partial(generator, 0, "a test"))
    found.keep(model, private)
    return found


@pytest.mark.parametrize("way", ["FedAvg", "FedPer"])
def test_rounds_are_what_the_methods_say(
    bench: Bench,
    model: Classifier,
    clients: Clients,
    private: list[Splits],
    ways: dict[str, State],
    way: str,
):
    found, _ = in_process(clients, len(private), {way: ways[way]})
    number, common, validation, test = by_hand(model, clients, private, way)
    assert (found[way].number, found[way].state.keys()) == (number, common.keys())
    assert found[way].validation == pytest.approx(validation, abs=0.02)
    assert found[way].test == pytest.approx(test, abs=0.02)
    start = copied(model)

    @torch.no_grad()
    def answers(state: dict[str, Tensor]) -> Tensor:
        # Not the weights: AdamW moves those without a gradient by the signs of rounding errors.
        model.load_state_dict(start | state)
        return model.eval()(**bench.world.public.test.inputs).softmax(dim=1)

    ours = answers(dict(found[way].state))
    torch.testing.assert_close(ours, answers(common), rtol=0, atol=2e-3)
    assert (ours - answers(start)).abs().max() > 0.05


def test_fedper_sends_no_classifier(
    model: Classifier, clients: Clients, private: list[Splits], ways: dict[str, State]
):
    _, grid = in_process(clients, len(private), ways)
    names: dict[str, set[str]] = {way: set() for way in ways}
    way = ""
    for message in grid.seen:
        way = message.content.config_records.get("config", {"way": way})["way"]
        for arrays in message.content.array_records.values():
            names[way] |= arrays.keys()
    assert names["FedAvg"] == model.state_dict().keys()
    assert names["FedPer"] == {n for n in names["FedAvg"] if not n.startswith(OWN)}
    kept = [context.state["FedPer"].to_torch_state_dict() for context in grid.contexts.values()]
    assert all(own.keys() == {"head.weight", "head.bias"} for own in kept)
    weights = [model.head.weight, *(own["head.weight"] for own in kept)]
    for i, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[:i])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves files and processes to them
def test_the_simulation_gives_the_same_bits_in_whatever_order_clients_answer(
    clients: Clients, private: list[Splits], ways: dict[str, State]
):
    simulated = simulate(clients, len(private), _ROUNDS, ways)
    gc.collect()  # while the warnings are ignored
    expected, _ = in_process(clients, len(private), ways)
    for way, best in expected.items():
        told = simulated[way]
        assert (told.number, told.validation, told.test) == (
            best.number,
            best.validation,
            best.test,
        )
        assert told.state.keys() == best.state.keys()
        assert all(torch.equal(told.state[name], best.state[name]) for name in best.state)


def scripted(validation: list[list[float]]) -> ClientApp:
    """Clients whose models are the number of the round, with given accuracies."""
    app = ClientApp()

    def answer(message: Message, context: Context, **records: Any) -> Message:
        sender = ConfigRecord({"client": context.node_config["partition-id"]})
        return Message(RecordDict({**records, "sender": sender}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = torch.tensor([float(message.content["config"]["server-round"])])
        arrays = ArrayRecord(torch_state_dict={"w": number})
        return answer(message, context, arrays=arrays, metrics=MetricRecord({"num-examples": 1}))

    @app.evaluate()
    def evaluate_(message: Message, context: Context) -> Message:
        number = message.content["config"]["server-round"]
        client = context.node_config["partition-id"]
        told = {"validation": validation[number - 1][client], "test": number + client / 10}
        return answer(message, context, metrics=MetricRecord({"num-examples": 1, **told}))

    return app


def test_the_best_round_is_chosen_by_validation_data():
    grid, found = _InProcess(scripted([[0.5, 0.7], [0.9, 0.8], [0.9, 0.7]]), 2), {}
    server_app(2, _ROUNDS, {"way": {"w": torch.zeros(1)}}, found)(grid, Context(0, 0, {}, {}, {}))
    assert found["way"] == Best(2, {"w": torch.tensor([2.0])}, [0.9, 0.8], [2.0, 2.1])


def test_a_round_without_one_of_its_clients_is_no_round():
    asked = Message(RecordDict(), 1, "train")
    failed = Message(Error(0, "out of memory"), reply_to=asked)
    with pytest.raises(RuntimeError, match="out of memory"):
        BestRound(1).aggregate_train(1, [failed])
    with pytest.raises(RuntimeError, match="0 of 1"):
        BestRound(1).aggregate_evaluate(1, [])
