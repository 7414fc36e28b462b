"""Personalised aggregation and its rivals, on cached features, without the protocol.

``python -m acme_research.ablations.personalisation --features text=FILE digits=FILE`` runs
Algorithm 2 with the project's own mathematics for every method, partition and seed, on files that
``personalisation_features.py`` wrote. Devices and partitions are in ``personalisation_fleets.py``,
methods in ``personalisation_methods.py``. All methods of a seed have the same devices, splits,
coarse header and number of epochs. A gain is the final test accuracy less the coarse header's, on a
test set that the devices share out as they do the train set. Intervals are Student's over seeds of
a seed's mean over its devices. Settings are chosen by the devices' spare samples.

The first rival of every run stands beside them: the features' whole backbone, and a logistic
regression on each device or the mean of all.

*Pooled* is no rival but a bound: everybody's private data train one header together, which no
device would allow, and each device then trains it on. A method cannot be expected to be far above.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_research.ablations.personalisation_fleets import (
    DEVICES,
    GENOTYPE,
    PRIVATE,
    SHARED,
    load,
    make_world,
)
from acme_research.ablations.personalisation_methods import (
    ABLATIONS,
    EXPLORED,
    LOCAL,
    METHODS,
    OURS,
    POISONED,
    POISONED_BY_CLASS,
    ROUNDS,
    First,
    Method,
    personalise,
)
from acme_research.frame.intervals import mean_interval
from acme_research.frame.probe import ALONE, AVERAGED, on_features
from acme_research.frame.record import write_result
from acme_research.frame.runs import add_line, parser_of, read_lines

RIVALS = ("Alone", "FedAvg", "FedAvg, seven rounds", "Pooled")
PROBE = "regressions"
COMPARED = (*RIVALS, "FedAvg, rows by class", "weights, debiased")


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
        missing = [n for n in (PROBE, *methods) if (what, partition, seed, n) not in done]
        left = [name for name in missing if name != PROBE]
        if not missing:
            continue
        world = make_world(what, tensors, about, partition, seed)
        if PROBE in missing:
            done.add((what, partition, seed, PROBE))
            about_run = {"data": what, "partition": partition, "seed": seed, "method": PROBE}
            classes, whole = about["classes"], about.get("bytes")
            found = on_features(world.private, world.shared, classes, whole)
            yield {**about_run, **found.pop("accuracy"), **found}
        first: First = {}
        coarse = [evaluate(CLASSIFICATION, world.coarse, data.test).score for data in world.private]
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
    of_seed = {run["seed"]: run for run in theirs}
    pairs = [(run, of_seed[run["seed"]]) for run in ours if run["seed"] in of_seed]
    by_seed = [100 * float(np.mean(np.subtract(a["test"], b[key]))) for a, b in pairs]
    return mean_interval(by_seed, 2)


def tabulate(results: list[dict[str, Any]], probes: list[dict[str, Any]]) -> dict[str, Any]:
    """For each data set, partition and method the gains, paired against rivals."""
    table: dict[str, Any] = {}
    for what, partition in dict.fromkeys((r["data"], r["partition"]) for r in results):
        here = [r for r in results if (r["data"], r["partition"]) == (what, partition)]
        by_method = {m: [r for r in here if r["method"] == m] for m in {r["method"] for r in here}}
        order = list(dict.fromkeys(r["method"] for r in here))
        by_method[PROBE] = [r for r in probes if (r["data"], r["partition"]) == (what, partition)]
        table[f"{what} {partition}"] = {name: row(by_method[name], by_method) for name in order}
    return table


def row(own: list[dict[str, Any]], by_method: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    gains = [np.subtract(r["test"], r["coarse"]) for r in own]
    error = [np.sqrt(0.5 / np.array(r["test samples"])) for r in own]
    return {
        "seeds": sorted(seeds_of(own)),
        **{name: mean(own, name) for name in ("coarse", "test", "validation")},
        "gain": difference(own, own, "coarse"),
        "gain unguarded": round(
            100 * float(np.mean([np.subtract(r["unguarded"], r["coarse"]) for r in own])), 2
        ),
        **{
            f"against {rival}": difference(own, by_method[rival], "test")
            for rival in RIVALS
            if seeds_of(own) & seeds_of(by_method.get(rival, []))
        },
        **{
            f"against {way}": difference(own, by_method[PROBE], way)
            for way in (ALONE, AVERAGED)
            if seeds_of(own) & seeds_of(by_method[PROBE])
        },
        **{name: mean(own, name) for name in ("spare", "spare either", "either")},
        "by seed": [round(float(np.mean(r["test"])), 5) for r in sorted(own, key=key)],
        "devices below coarse": sum(int((g < 0).sum()) for g in gains),
        "devices below coarse by more than two errors": sum(
            int((g < -2 * e).sum()) for g, e in zip(gains, error, strict=True)
        ),
        "devices": sum(map(len, gains)),
        "neurons": round(float(np.mean([r["neurons"] for r in own])), 1),
        "peers": round(float(np.mean([r["peers"] for r in own])), 2),
    }


def mean(runs: list[dict[str, Any]], key: str) -> float | None:
    """Mean over seeds and devices; none if a run lacks it."""
    if any(key not in run for run in runs):
        return None
    return round(float(np.mean([np.mean(run[key]) for run in runs])), 4)


def seeds_of(runs: list[dict[str, Any]]) -> set[int]:
    return {run["seed"] for run in runs}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--features", nargs="+", required=True, metavar="text|digits=FILE")
    parser.add_argument("--partitions", nargs="+", default=["iid", "natural", "c1", "c2", "c3"])
    parser.add_argument("--ablations", type=int, default=2, help="seeds of the ablations")
    parser.add_argument("--explored", type=int, default=2, help="seeds of what was tried, on text")
    parser.add_argument("--poisoned", type=int, default=5, help="seeds with a poisoned device")
    parser.add_argument("--runs", type=Path, default=Path("runs/personalisation.jsonl"))
    arguments = parser.parse_args()
    results = read_lines(arguments.runs)
    for given in arguments.features:
        what, _, path = given.partition("=")
        if not Path(path).exists():
            print(f"skipped {what}: no file {path}; see personalisation_features.py")
            continue
        wanted = [p for p in arguments.partitions if what == "text" or p != "natural"]
        done = {(r["data"], r["partition"], r["seed"], r["method"]) for r in results}
        tried = ("iid", "c1", "c3") if what == "text" else ()
        five = [f"{p} of 5" for p in wanted if p in ("iid", "c1", "c3")]
        sets = (
            (wanted, METHODS, arguments.seeds),
            (wanted, ABLATIONS, arguments.ablations),
            ([p for p in tried if p in wanted], EXPLORED, arguments.explored),
            (wanted, POISONED | POISONED_BY_CLASS, arguments.poisoned),
            (five, {"weights, debiased": OURS} | POISONED, arguments.poisoned),
        )
        for partitions, methods, seeds in sets:
            for run in run_all(what, Path(path), partitions, range(seeds), methods, done):
                add_line(arguments.runs, run)
    write_result("personalisation", summary(read_lines(arguments.runs)))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    probes = [r for r in results if r["method"] == PROBE]
    main_runs = [r for r in results if r["method"] in METHODS and " of " not in r["partition"]]

    def beside(methods: dict[str, Method]) -> list[dict[str, Any]]:
        """Runs of these methods, and of the methods they are compared with, in the same worlds."""
        own = [r for r in results if r["method"] in methods]
        worlds = {key(r) for r in own}
        return [r for r in main_runs if key(r) in worlds and r["method"] in COMPARED] + own

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
        "probe": regressions(probes),
        "methods": tabulate(main_runs, probes),
        "ablations": tabulate(beside(ABLATIONS), probes),
        "explored": tabulate(beside(EXPLORED), probes),
        "honest devices, less without poison": honest_losses(results),
    }


def regressions(probes: list[dict[str, Any]]) -> dict[str, Any]:
    """The first rival's mean test accuracies for each data set and partition."""
    table = {}
    for fleet in dict.fromkeys(key(run)[:2] for run in probes):
        here = [run for run in probes if key(run)[:2] == fleet]
        means = {way: mean(here, way) for way in (ALONE, AVERAGED)}
        size = max((run["size_bytes"] for run in here if "size_bytes" in run), default=None)
        table[" ".join(fleet)] = {"seeds": sorted(seeds_of(here)), **means, "size_bytes": size}
    return table


def honest_losses(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The others' loss by one poisoned device of ten, or of five, in points of test accuracy."""
    sound = {(*key(r), r["method"]): r for r in results}
    table: dict[str, Any] = {}
    fleets = dict.fromkeys(key(r)[:2] for r in results)
    for name, fleet in itertools.product([*POISONED, *POISONED_BY_CLASS], fleets):
        honest = "FedAvg, rows by class" if name in POISONED_BY_CLASS else "weights, debiased"
        runs = [r for r in results if r["method"] == name and key(r)[:2] == fleet]
        pairs = [(r, sound[*key(r), honest]) for r in runs]
        if pairs:
            by_seed = [
                100 * float(np.mean(np.subtract(a["test"], b["test"])[1:])) for a, b in pairs
            ]
            table.setdefault(" ".join(fleet), {})[name] = mean_interval(by_seed, 2)
    return table


def key(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["data"], run["partition"], run["seed"]


if __name__ == "__main__":
    main()
