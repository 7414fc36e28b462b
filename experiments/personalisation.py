"""Personalised aggregation and its rivals, on cached features, without the protocol.

``python experiments/personalisation.py --features text=FILE digits=FILE`` runs Algorithm 2 with
the project's own mathematics for every method, partition and seed, on files that
``personalisation_features.py`` wrote. All methods of a seed have the same devices, splits, coarse
header, first local training and number of trainings. A gain is the final test accuracy less the
coarse header's, on a test set that the devices share out as they do the train set. Intervals are
Student's over seeds of a seed's mean over its devices.

*Pooled* is no rival but a bound: everybody's private data train one header together, which no
device would allow, and each device then trains it on. A method cannot be expected to be far above.

Partitions: ``iid``; ``natural`` (text: a device per domain, no two devices alike); ``c1`` three
groups that share no class; ``c2`` five pairs, neighbours share half of their classes; ``c3`` every
device draws three tenths of the classes. ``c1 of 5`` is ``c1`` with five devices.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from scipy import stats
from torch import Tensor

from acme_fleet.baselines import aggregation as rivals
from acme_fleet.data.partition import allocate, class_shares
from acme_fleet.data.samples import Samples, Splits, stratified_split
from acme_fleet.device.batched import LocalTraining, train_headers
from acme_fleet.device.refinement import HeaderState, prune_header
from acme_fleet.edge.aggregation import aggregate, mix_headers
from acme_fleet.edge.similarity import debias, distance_matrix, mixing_weights
from acme_fleet.fleet import IID, Pathological, Training
from acme_fleet.models.header import Header, build_header, initial_tensors
from acme_fleet.models.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.training import evaluate, fit
from acme_fleet.seeding import derive_seed, generator

RESULT = Path(__file__).parent / "results" / "personalisation.json"
DEVICES = 10
BLOCK = Block(inputs=(0, 1), operations=("conv3", "conv1"))
GENOTYPE = Genotype(blocks=(BLOCK,), cells=1, channels=16)
LOCAL = Training(epochs=10, batch_size=16, learning_rate=2e-3)
COARSE = Training(epochs=40, batch_size=16, learning_rate=3e-3)
ROUNDS = 3
PRIVATE = {"text": 200, "digits": 70}  # samples of a device, a quarter of them for validation
SHARED = 0.15  # the edge's samples relative to all private ones


@dataclass(frozen=True)
class Method:
    """What a method mixes, and by which weights."""

    weights: str
    mix: str = "importance"
    temperature: float = 0.1
    prune_share: float = 0.1
    learning_rate: float = LOCAL.learning_rate
    feature_samples: int = 32
    poison: float = 1.0  # the first device uploads its header times this …
    contained: float = 2.0  # … of which the edge takes at most so many median lengths
    pooled: bool = False  # start from a header that all private data have trained together


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
}
OURS = METHODS["weights, debiased"]
ABLATIONS = {
    **{f"temperature {t:g}": replace(OURS, temperature=t) for t in (0.03, 0.3, 1.0)},
    **{f"feature samples {n}": replace(OURS, feature_samples=n) for n in (16, 100)},
    **{f"prune share {share:g}": replace(OURS, prune_share=share) for share in (0.0, 0.25)},
    "weights, own importance": replace(OURS, mix="weights"),
    "100 feature samples, temperature 0.03": replace(OURS, feature_samples=100, temperature=0.03),
}
POISONED = {
    "times 1000": replace(OURS, poison=1000.0),
    "times 1000, not contained": replace(OURS, poison=1000.0, contained=float("inf")),
    "times -1": replace(OURS, poison=-1.0),
}


# --- the fleet --------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One seed's devices, the coarse header that all receive, and their feature samples."""

    seed: int
    coarse: Header
    private: list[Splits]
    samples: list[np.ndarray]


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["about"])


def held_classes(
    partition: str, devices: int, about: dict[str, Any], random: np.random.Generator
) -> list:
    """Each device's classes, by number; None for all."""
    classes = about["classes"]
    everything = random.permutation(classes)
    if partition == "iid":
        return [range(classes)] * devices
    if partition == "natural":
        domains = sorted(set(about["domains"]))
        return [[c for c in range(classes) if about["domains"][c] == d] for d in domains]
    if partition == "c1":
        groups = np.array_split(everything, 3)
        return [groups[i % 3] for i in range(devices)]
    if partition == "c2":
        parts = np.array_split(everything, 5)
        return [np.concatenate([parts[i // 2], parts[(i // 2 + 1) % 5]]) for i in range(devices)]
    each = max(2, round(0.3 * classes))
    return [random.permutation(classes)[:each] for _ in range(devices)]


def make_world(
    what: str, tensors: dict[str, Tensor], about: dict[str, Any], partition: str, seed: int
) -> World:
    random = np.random.default_rng(derive_seed(seed, what, partition))
    names = [str(c) for c in range(about["classes"])]
    kind, _, count = partition.partition(" of ")
    devices = int(count or DEVICES)
    held = [[str(c) for c in own] for own in held_classes(kind, devices, about, random)]
    scheme = (
        IID(scheme="iid") if kind == "iid" else Pathological(scheme="pathological", classes=held)
    )
    shares = class_shares(scheme, devices, names, random)
    labels, is_test = tensors["labels"].numpy(), tensors["test"].numpy()
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    size = PRIVATE[what] / (1 - SHARED)
    private, shared = [], []
    tests = allocate(labels[test], shares, random)
    for part, own_test in zip(allocate(labels[train], shares, random), tests, strict=True):
        own = train[part]
        if len(own) > size:
            own = own[stratified_split(labels[own], size / len(own), random)[1]]
        kept, lent = stratified_split(labels[own], SHARED / (1 + SHARED), random)
        known, validation = stratified_split(labels[own[kept]], 0.25, random)
        kept = own[kept]
        private.append(
            Splits(*(at(tensors, i) for i in (kept[known], kept[validation], test[own_test])))
        )
        shared.append(own[lent])
    samples = [
        s.train.inputs["pooled"][torch.from_numpy(random.permutation(len(s.train)))]
        .half()
        .double()
        .numpy()
        for s in private
    ]
    coarse = coarse_header(at(tensors, np.concatenate(shared)), about["classes"], seed)
    return World(seed, coarse, private, samples)


def at(tensors: dict[str, Tensor], index: np.ndarray) -> Samples:
    chosen = torch.from_numpy(np.sort(index))
    inputs = {name: tensors[name][chosen].float() for name in ("last", "penultimate", "pooled")}
    return Samples(inputs, tensors["labels"][chosen], torch.ones(len(chosen), dtype=torch.int64))


def coarse_header(shared: Samples, classes: int, seed: int) -> Header:
    """The edge's own training on its shared data, a fifth of them to choose the epoch."""
    random = np.random.default_rng(derive_seed(seed, "shared"))
    known, choice = stratified_split(shared.labels.numpy(), 0.2, random)
    hidden, axes = shared.inputs["pooled"].shape[1], shared.inputs["last"].ndim - 2
    plan = HeaderPlan(genotype=GENOTYPE, hidden=hidden, classes=classes, axes=axes)
    header = build_header(plan, initial_tensors(plan.shapes(), generator(seed, "coarse")))
    fit(
        header,
        shared[torch.from_numpy(known)],
        COARSE,
        generator(seed, "edge"),
        validation=shared[torch.from_numpy(choice)],
    )
    return header.eval()


# --- Algorithm 2 ------------------------------------------------------------------------------


def similarity(method: Method, world: World) -> np.ndarray:
    samples = [own[: method.feature_samples] for own in world.samples]
    devices = len(samples)
    if method.weights == "alone":
        return rivals.alone(devices)
    if method.weights == "average":
        return rivals.average(devices)
    if method.weights == "federated":
        return rivals.federated_average([len(s.train) for s in world.private])
    if method.weights == "js":
        distances = rivals.jensen_shannon_distances(samples)
        others = distances[~np.eye(devices, dtype=bool)]
        return mixing_weights(distances / np.median(others), method.temperature)
    distances = distance_matrix(samples)
    if method.weights == "debiased":
        distances = debias(distances, samples)
    return mixing_weights(distances, method.temperature)


Trained = list[tuple[Header, dict[str, Tensor]]]


def train(headers: list[Header], world: World, method: Method, number: int) -> Trained:
    training = LOCAL.model_copy(update={"learning_rate": method.learning_rate})
    work = (
        LocalTraining(header, data, generator(world.seed, device, number))
        for device, (header, data) in enumerate(zip(headers, world.private, strict=True))
    )
    return list(train_headers(work, training))


def personalise(method: Method, world: World, first: dict[float, Trained]) -> dict[str, Any]:
    """All rounds; test accuracies of the guarded and of the last header, by device."""
    weights = similarity(method, world)
    begin = pooled_header(world) if method.pooled else world.coarse
    states = [HeaderState.start(begin, data.validation) for data in world.private]
    start = dict(world.coarse.state_dict())
    for number in range(ROUNDS + 1):
        shared = number == 0 and not method.pooled
        if shared and method.learning_rate in first:
            trained = first[method.learning_rate]
        else:
            trained = train([state.current for state in states], world, method, number)
        if shared:
            first[method.learning_rate] = trained
        states = advance(states, [header for header, _ in trained], world)
        if number == ROUNDS:
            break
        if method.mix in ("both", "weights"):
            headers = {str(i): state.current for i, state in enumerate(states)}
            sent = {name: dict(header.state_dict()) for name, header in headers.items()}
            sent["0"] = {name: method.poison * values for name, values in sent["0"].items()}
            mixed = mix_headers(
                sent,
                {name: header.plan for name, header in headers.items()},
                weights,
                start,
                method.contained,
            )
            states = advance(
                states, [build_header(headers[n].plan, mixed[n]) for n in headers], world
            )
        sets = {str(i): importance for i, (_, importance) in enumerate(trained)}
        own = np.eye(len(states)) if method.mix == "weights" else weights
        combined = aggregate(sets, own)
        smaller = [
            prune_header(state.current, combined[str(i)], method.prune_share)
            for i, state in enumerate(states)
        ]
        states = advance(states, smaller, world)
    return measure(states, world, weights)


def pooled_header(world: World) -> Header:
    """What all private data make of the coarse header, were they in one place."""

    def together(parts: list[Samples]) -> Samples:
        inputs = {k: torch.cat([part.inputs[k] for part in parts]) for k in parts[0].inputs}
        labels = torch.cat([part.labels for part in parts])
        return Samples(inputs, labels, torch.ones(len(labels), dtype=torch.int64))

    header = build_header(world.coarse.plan, world.coarse.state_dict())
    fit(
        header,
        together([data.train for data in world.private]),
        COARSE,
        generator(world.seed, "pooled"),
        validation=together([data.validation for data in world.private]),
    )
    return header.eval()


def advance(states: list[HeaderState], headers: list[Header], world: World) -> list[HeaderState]:
    return [
        state.with_current(header, data.validation)
        for state, header, data in zip(states, headers, world.private, strict=True)
    ]


def measure(states: list[HeaderState], world: World, weights: np.ndarray) -> dict[str, Any]:
    pairs = list(zip(states, world.private, strict=True))
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
    return {
        "test": [evaluate(state.best, data.test).accuracy for state, data in pairs],
        "unguarded": [evaluate(state.current, data.test).accuracy for state, data in pairs],
        "validation": [state.best_evaluation.accuracy for state in states],
        "neurons": [state.best.plan.neurons for state in states],
        "peers": float(np.exp(entropy).mean()),
    }


# --- the table --------------------------------------------------------------------------------


def run_all(
    what: str,
    path: Path,
    partitions: list[str],
    seeds: range,
    methods: dict[str, Method],
    done: set[tuple[str, str, int, str]],
) -> Iterator[dict[str, Any]]:
    """Every run that is not done yet, seed by seed."""
    tensors, about = load(path)
    for seed, partition in itertools.product(seeds, partitions):
        left = [name for name in methods if (what, partition, seed, name) not in done]
        if not left:
            continue
        world = make_world(what, tensors, about, partition, seed)
        first: dict[float, Trained] = {}
        coarse = [evaluate(world.coarse, data.test).accuracy for data in world.private]
        for name in left:
            begin = time.perf_counter()
            run = personalise(methods[name], world, first)
            print(
                f"{what} {partition} {seed} {name:40} {np.mean(coarse):.3f} -> "
                f"{np.mean(run['test']):.3f}  last {np.mean(run['unguarded']):.3f}  "
                f"{run['peers']:.1f} peers  {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
            about_run = {"data": what, "partition": partition, "seed": seed, "method": name}
            tested = [len(data.test) for data in world.private]
            yield {**about_run, "coarse": coarse, "test samples": tested, **run}


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> dict:
    """Mean of (ours - theirs) in points, paired by device, with Student's interval over seeds."""
    pairs = zip(ours, theirs, strict=True)
    by_seed = [100 * float(np.mean(np.subtract(a["test"], b[key]))) for a, b in pairs]
    return {"mean": round(float(np.mean(by_seed)), 2), "interval": interval(by_seed)}


def interval(by_seed: list[float]) -> list[float]:
    if len(by_seed) < 2:
        return []
    half = stats.t.ppf(0.975, len(by_seed) - 1) * stats.sem(by_seed)
    mean = np.mean(by_seed)
    return [round(float(mean - half), 2), round(float(mean + half), 2)]


def tabulate(results: list[dict[str, Any]]) -> dict[str, Any]:
    """For each data set, partition and method the gains, paired against Alone and FedAvg."""
    table: dict[str, Any] = {}
    for what, partition in dict.fromkeys((r["data"], r["partition"]) for r in results):
        here = [r for r in results if (r["data"], r["partition"]) == (what, partition)]
        by_method = {m: [r for r in here if r["method"] == m] for m in {r["method"] for r in here}}
        order = list(dict.fromkeys(r["method"] for r in here))
        table[f"{what} {partition}"] = {name: row(by_method[name], by_method) for name in order}
    return table


def row(own: list[dict[str, Any]], by_method: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    gains = [np.subtract(r["test"], r["coarse"]) for r in own]
    error = [np.sqrt(0.5 / np.array(r["test samples"])) for r in own]
    return {
        "seeds": sorted(r["seed"] for r in own),
        "coarse": round(float(np.mean([r["coarse"] for r in own])), 4),
        "test": round(float(np.mean([r["test"] for r in own])), 4),
        "validation": round(float(np.mean([r["validation"] for r in own])), 4),
        "gain": difference(own, own, "coarse"),
        "gain unguarded": round(
            100 * float(np.mean([np.subtract(r["unguarded"], r["coarse"]) for r in own])), 2
        ),
        "against Alone": difference(own, by_method["Alone"], "test"),
        "against FedAvg": difference(own, by_method["FedAvg"], "test"),
        "below Pooled": difference(own, by_method["Pooled"], "test")
        if "Pooled" in by_method
        else None,
        "by seed": [round(float(np.mean(r["test"])), 5) for r in sorted(own, key=key)],
        "devices below coarse": sum(int((g < 0).sum()) for g in gains),
        "devices below coarse by more than two errors": sum(
            int((g < -2 * e).sum()) for g, e in zip(gains, error, strict=True)
        ),
        "devices": sum(map(len, gains)),
        "neurons": round(float(np.mean([r["neurons"] for r in own])), 1),
        "peers": round(float(np.mean([r["peers"] for r in own])), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", nargs="+", required=True, metavar="text|digits=FILE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--partitions", nargs="+", default=["iid", "natural", "c1", "c2", "c3"])
    parser.add_argument("--ablations", type=int, default=2, help="seeds of the ablations")
    parser.add_argument("--poisoned", type=int, default=5, help="seeds with a poisoned device")
    parser.add_argument("--runs", type=Path, default=Path("runs/personalisation.jsonl"))
    arguments = parser.parse_args()
    arguments.runs.parent.mkdir(parents=True, exist_ok=True)
    results = read_runs(arguments.runs)
    for given in arguments.features:
        what, _, path = given.partition("=")
        if not Path(path).exists():
            print(f"skipped {what}: no file {path}; see personalisation_features.py")
            continue
        wanted = [p for p in arguments.partitions if what == "text" or p != "natural"]
        done = {(r["data"], r["partition"], r["seed"], r["method"]) for r in results}
        five = [f"{p} of 5" for p in wanted if p in ("iid", "c1", "c3")]
        sets = (
            (wanted, METHODS, arguments.seeds),
            (wanted, ABLATIONS, arguments.ablations),
            (wanted, POISONED, arguments.poisoned),
            (five, {"weights, debiased": OURS} | POISONED, arguments.poisoned),
        )
        for partitions, methods, seeds in sets:
            for run in run_all(what, Path(path), partitions, range(seeds), methods, done):
                with arguments.runs.open("a") as file:
                    file.write(json.dumps(run) + "\n")
    results = read_runs(arguments.runs)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(summary(results), indent=1) + "\n")
    print(f"wrote {RESULT}")


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Runs that an earlier start has finished."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    main_runs = [r for r in results if r["method"] in METHODS and " of " not in r["partition"]]
    ablated = [r for r in results if r["method"] in ABLATIONS]
    worlds = {key(r) for r in ablated}
    compared = [r for r in main_runs if key(r) in worlds and r["method"] in COMPARED]
    settings = {
        "devices": DEVICES,
        "rounds": ROUNDS,
        "local": LOCAL.model_dump(),
        "header": GENOTYPE.describe(),
        "private samples": PRIVATE,
        "shared share": SHARED,
    }
    return {
        "settings": settings,
        "methods": tabulate(main_runs),
        "ablations": tabulate(compared + ablated),
        "honest devices, less without poison": honest_losses(results),
    }


def honest_losses(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What one poisoned device of ten, or of five, costs the others, in points of test accuracy."""
    sound = {key(r): r for r in results if r["method"] == "weights, debiased"}
    table: dict[str, Any] = {}
    for name, fleet in itertools.product(POISONED, dict.fromkeys(key(r)[:2] for r in results)):
        pairs = [(r, sound[key(r)]) for r in results if r["method"] == name and key(r)[:2] == fleet]
        if pairs:
            by_seed = [
                100 * float(np.mean(np.subtract(a["test"], b["test"])[1:])) for a, b in pairs
            ]
            told = {"mean": round(float(np.mean(by_seed)), 2), "interval": interval(by_seed)}
            table.setdefault(" ".join(fleet), {})[name] = told
    return table


def key(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["data"], run["partition"], run["seed"]


COMPARED = ("Alone", "FedAvg", "weights, debiased")


if __name__ == "__main__":
    main()
