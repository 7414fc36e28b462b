"""Personalised aggregation and its rivals, on cached features, without the protocol.

``python -m acme_research.ablations.personalisation --features text=FILE digits=FILE`` runs
Algorithm 2 with the project's own mathematics for every method, partition and seed, on files that
``personalisation_fleets.py`` wrote. All methods of a seed have the same devices, splits, coarse
header and number of epochs. A gain is the final test accuracy less the coarse header's, on a test
set that the devices share out as they do the train set. Intervals are Student's over seeds of a
seed's mean over its devices.

The first rival of every run stands beside them: the features' whole backbone, and a logistic
regression on each device or the mean of all.

*Pooled* is no rival but a bound: everybody's private data train one header together, which no
device would allow, and each device then trains it on. A method cannot be expected to be far above.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.config.training import Training
from acme_fleet.data.samples import join
from acme_fleet.device.refinement import HeaderState, LocalTraining, Trained, prune_header
from acme_fleet.edge.similarity import mixing_weights, who_listens_to_whom
from acme_fleet.messages.edge_device import RoundStart
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.personalization.base import Own
from acme_fleet.personalization.rules import AnyRule, rule_of
from acme_fleet.personalization.weights import HeadersRule
from acme_fleet.privacy.protection import Protection
from acme_fleet.seeding import generator
from acme_fleet.simulation.batched import train_headers
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit
from acme_research.ablations.personalisation_fleets import (
    COARSE,
    DEVICES,
    GENOTYPE,
    PRIVATE,
    SHARED,
    World,
    load,
    make_world,
)
from acme_research.frame.intervals import mean_interval
from acme_research.frame.probe import ALONE, AVERAGED, on_features
from acme_research.frame.record import write_result
from acme_research.frame.runs import add_line, parser_of, read_lines
from acme_research.rivals import aggregation

LOCAL = Training(epochs=10, batch_size=16, learning_rate=2e-3)
ROUNDS, FEATURE_SAMPLES = 3, 32
RIVALS = ("Alone", "FedAvg", "FedAvg, seven rounds", "Pooled")
PROBE, SEED = "regressions", itemgetter("seed")
UNUSED = Protection("device", Privacy(), 0, Path("unused"))  # open rules have no keys
Run = dict[str, Any]
First = dict[Any, list[Trained]]


@dataclass(frozen=True)
class Method:
    """A method's mixed parts and its weights. All methods train for 40 epochs in all.

    Attributes:
        weights: see :func:`listening`.
        mix, classifier, temperature, prune_share, rounds: as in a fleet file.
        learning_rate, epochs: of a round; ``last_epochs`` after the last one.
        last: a round's training keeps the last epoch, and not the best by validation.
        pooled: start from a header that all private data have trained together.
    """

    weights: str
    mix: str = "importance"
    temperature: float = 0.1
    prune_share: float = 0.1
    learning_rate: float = LOCAL.learning_rate
    pooled: bool = False
    rounds: int = ROUNDS
    epochs: int = LOCAL.epochs
    last_epochs: int = LOCAL.epochs
    last: bool = False
    classifier: str = "everyone"


# More and shorter rounds, which end with about as many neurons.
SEVEN: dict[str, Any] = {"rounds": 7, "epochs": 4, "last_epochs": 12, "prune_share": 0.05}
SEVEN |= {"last": True, "learning_rate": 4e-3}
METHODS = {
    "Alone": Method("alone"),
    "Avg": Method("average"),
    "JS": Method("js"),
    "ACME as printed": Method("literal", temperature=1.0),
    "ACME debiased": Method("debiased"),
    "FedAvg": Method("federated", "both"),
    "weights, as printed": Method("literal", "both", temperature=1.0),
    "weights, JS": Method("js", "both"),
    "weights, debiased": Method("debiased", "both"),
    "Pooled": Method("alone", pooled=True),
    "FedAvg, seven rounds": Method("federated", "both", **SEVEN),
    "FedAvg, rows by class": Method("federated", "both", classifier="holders", **SEVEN),
}


# --- Algorithm 2 ------------------------------------------------------------------------------


def listening(method: Method, world: World) -> np.ndarray:
    """Ŵ of a method, row = receiver: the product's, or a rival's."""
    samples = [own[:FEATURE_SAMPLES] for own in world.samples]
    devices = len(samples)
    match method.weights:
        case "alone":
            return aggregation.alone(devices)
        case "average":
            return aggregation.average(devices)
        case "federated":
            return aggregation.federated_average([len(s.train) for s in world.private])
        case "js":
            distances = aggregation.jensen_shannon_distances(samples)
            others = distances[~np.eye(devices, dtype=bool)]
            return mixing_weights(distances / np.median(others), method.temperature)
    found = who_listens_to_whom(samples, method.weights, method.temperature)
    assert isinstance(found, np.ndarray)  # these are few devices
    return found


def train(
    headers: list[Header], world: World, method: Method, number: int, first: First
) -> list[Trained]:
    """The training of a round; what all methods of a seed have in common is done once."""
    final = number == method.rounds
    epochs, last = method.last_epochs if final else method.epochs, method.last and not final
    key = (epochs, method.learning_rate, last)
    common = number == 0 and not method.pooled
    if common and key in first:
        return first[key]
    local = LOCAL.model_copy(update={"learning_rate": method.learning_rate, "epochs": epochs})
    devices = [
        LocalTraining(header, data, generator(world.seed, device, number))
        for device, (header, data) in enumerate(zip(headers, world.private, strict=True))
    ]
    trained = list(train_headers(CLASSIFICATION, devices, local, to_mix=last))
    if common:
        first[key] = trained
    return trained


def personalise(method: Method, world: World, first: First) -> Run:
    """All rounds; accuracies of the guarded and of the last header, by device."""
    weights = listening(method, world)
    settings = {"mix": method.mix, "classifier": method.classifier}
    rule = rule_of(Personalization.model_validate(settings))
    begin = pooled_header(world) if method.pooled else world.coarse
    validation = [data.validation for data in world.private]
    states = [  # as a header arrives, without a regression of its own
        HeaderState(begin, begin, evaluate(CLASSIFICATION, begin, own)) for own in validation
    ]

    def advance(headers: list[Header]) -> list[HeaderState]:
        together = zip(states, headers, validation, strict=True)
        return [state.with_current(CLASSIFICATION, header, own) for state, header, own in together]

    for number in range(method.rounds):
        trained = train([state.current for state in states], world, method, number, first)
        states = advance([header for header, _ in trained])
        headers, sets = exchange(rule, world, number, trained, weights)
        states = advance(headers) if headers else states
        pairs = zip(states, sets, strict=True)
        states = advance([prune_header(s.current, own, method.prune_share) for s, own in pairs])
    current = [state.current for state in states]
    states = advance([h for h, _ in train(current, world, method, method.rounds, first)])
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
    return {
        "test": tested([state.best for state in states], world),
        "unguarded": tested([state.current for state in states], world),
        "validation": [state.best_evaluation.score for state in states],
        "neurons": [state.best.plan.neurons for state in states],
        "peers": float(np.exp(entropy).mean()),
    }


def exchange(
    rule: AnyRule, world: World, number: int, trained: list[Trained], weights: np.ndarray
) -> tuple[list[Header], list[ImportanceSet]]:
    """The messages of a round: mixed headers, if the rule mixes any, and importance, by device."""
    start, coarse, uploads = RoundStart(round=number), world.coarse, {}
    for device, ((header, found), data) in enumerate(zip(trained, world.private, strict=True)):
        own = Own(header, found, lambda d=data: d.train.labels.unique().tolist(), UNUSED)
        uploads[str(device)] = rule.upload(start, own)
    mixed = rule.mix(uploads, coarse.plan, coarse.state_dict(), weights)
    updates = [rule.update(start, part) for part in mixed.parts.values()]
    sets = [rule.received(update, coarse.plan, UNUSED) for update in updates]
    headers: list[Header | None] = []
    if isinstance(rule, HeadersRule):
        pairs = zip(updates, trained, strict=True)
        headers = [rule.received_header(update, header.plan) for update, (header, _) in pairs]
    return [h for h in headers if h is not None], [own for own in sets if own is not None]


def pooled_header(world: World) -> Header:
    """The coarse header trained on all private data in one place."""
    header = build_header(world.coarse.plan, world.coarse.state_dict())
    train, validation = (
        join([getattr(data, part) for data in world.private]) for part in ("train", "validation")
    )
    draw = generator(world.seed, "pooled")
    fit(CLASSIFICATION, header, train, COARSE, draw, validation=validation)
    return header.eval()


def tested(headers: list[Header], world: World) -> list[float]:
    pairs = zip(headers, world.private, strict=True)
    return [evaluate(CLASSIFICATION, header, data.test).score for header, data in pairs]


# --- the table --------------------------------------------------------------------------------


def run_all(
    what: str, path: Path, partitions: list[str], seeds: range, done: set[tuple[Any, ...]]
) -> Iterator[Run]:
    """Every run that is not done yet, seed by seed."""
    tensors, about = load(path)
    for seed, partition in itertools.product(seeds, partitions):
        missing = [n for n in (PROBE, *METHODS) if (what, partition, seed, n) not in done]
        if not missing:
            continue
        world, first = make_world(what, tensors, about, partition, seed), {}
        coarse = tested([world.coarse] * len(world.private), world)
        for name in missing:
            told = {"data": what, "partition": partition, "seed": seed, "method": name}
            if name == PROBE:
                classes, whole = about["classes"], about.get("bytes")
                found = on_features(world.private, world.shared, classes, whole)
                yield {**told, **found.pop("accuracy"), **found}
                continue
            begin = time.perf_counter()
            run = personalise(METHODS[name], world, first)
            gain = f"{np.mean(coarse):.3f} -> {np.mean(run['test']):.3f}"
            took = time.perf_counter() - begin
            print(f"{what} {partition} {seed} {name:40} {gain}  {took:.0f} s", flush=True)
            sizes = [len(data.test) for data in world.private]
            yield {**told, "coarse": coarse, "test samples": sizes, **run}


def difference(ours: list[Run], theirs: list[Run], key: str) -> dict[str, Any]:
    """Mean of (ours - theirs) in points, paired by device, with Student's interval over seeds."""
    of_seed = {run["seed"]: run for run in theirs}
    pairs = [(run, of_seed[run["seed"]]) for run in ours if run["seed"] in of_seed]
    return mean_interval(
        [100 * float(np.mean(np.subtract(a["test"], b[key]))) for a, b in pairs], 2
    )


def tabulate(results: list[Run], probes: list[Run]) -> dict[str, Any]:
    """For each data set, partition and method the gains, paired against rivals."""
    table: dict[str, Any] = {}
    for fleet in dict.fromkeys(map(fleet_of, results)):
        here = [run for run in results if fleet_of(run) == fleet]
        by_method = {run["method"]: [] for run in here}
        for run in here:
            by_method[run["method"]].append(run)
        own = [run for run in probes if fleet_of(run) == fleet]
        table[fleet] = {name: row(runs, by_method, own) for name, runs in by_method.items()}
    return table


def row(own: list[Run], by_method: dict[str, list[Run]], probes: list[Run]) -> dict[str, Any]:
    gains = [np.subtract(run["test"], run["coarse"]) for run in own]
    errors = [np.sqrt(0.5 / np.array(run["test samples"])) for run in own]
    rivals = {name: (by_method.get(name, []), "test") for name in RIVALS}
    rivals |= {way: (probes, way) for way in (ALONE, AVERAGED)}
    unguarded = [np.subtract(run["unguarded"], run["coarse"]) for run in own]
    return {
        "seeds": seeds_of(own),
        **{name: mean(own, name) for name in ("coarse", "test", "validation")},
        "gain": difference(own, own, "coarse"),
        "gain unguarded": round(100 * float(np.mean(unguarded)), 2),
        **{
            f"against {name}": difference(own, runs, key)
            for name, (runs, key) in rivals.items()
            if {*seeds_of(own)} & {*seeds_of(runs)}
        },
        "by seed": [round(float(np.mean(r["test"])), 5) for r in sorted(own, key=SEED)],
        "devices below coarse": sum(int((g < 0).sum()) for g in gains),
        "devices below coarse by more than two errors": sum(
            int((gain < -2 * error).sum()) for gain, error in zip(gains, errors, strict=True)
        ),
        "devices": sum(map(len, gains)),
        "neurons": round(float(np.mean([run["neurons"] for run in own])), 1),
        "peers": round(float(np.mean([run["peers"] for run in own])), 2),
    }


def mean(runs: list[Run], key: str) -> float:
    """Mean over seeds and devices."""
    return round(float(np.mean([np.mean(run[key]) for run in runs])), 4)


def seeds_of(runs: list[Run]) -> list[int]:
    return sorted(map(SEED, runs))


def fleet_of(run: Run) -> str:
    return f"{run['data']} {run['partition']}"


def regressions(probes: list[Run]) -> dict[str, Any]:
    """The first rival's mean test accuracies for each data set and partition."""
    table = {}
    for fleet in dict.fromkeys(map(fleet_of, probes)):
        here = [run for run in probes if fleet_of(run) == fleet]
        means = {way: mean(here, way) for way in (ALONE, AVERAGED)}
        size = max((run["size_bytes"] for run in here if "size_bytes" in run), default=None)
        table[fleet] = {"seeds": seeds_of(here), **means, "size_bytes": size}
    return table


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--features", nargs="+", required=True, metavar="text|digits=FILE")
    parser.add_argument("--partitions", nargs="+", default=["iid", "natural", "c1", "c2", "c3"])
    parser.add_argument("--runs", type=Path, default=Path("runs/personalisation.jsonl"))
    arguments = parser.parse_args()
    done = {(r["data"], r["partition"], r["seed"], r["method"]) for r in read_lines(arguments.runs)}
    for given in arguments.features:
        what, _, path = given.partition("=")
        wanted = [p for p in arguments.partitions if what == "text" or p != "natural"]
        for run in run_all(what, Path(path), wanted, range(arguments.seeds), done):
            add_line(arguments.runs, run)
    results = read_lines(arguments.runs)
    probes = [run for run in results if run["method"] == PROBE]
    settings = {
        "devices": DEVICES,
        "rounds": ROUNDS,
        "local": LOCAL.model_dump(),
        "header": GENOTYPE.describe(),
        "private samples": PRIVATE,
        "shared share": SHARED,
    }
    methods = tabulate([run for run in results if run["method"] in METHODS], probes)
    told = {"settings": settings, "probe": regressions(probes), "methods": methods}
    write_result("personalisation", told)


if __name__ == "__main__":
    main()
