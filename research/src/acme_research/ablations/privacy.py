"""Effects of sketches and noise on the mixing weights and on accuracy, on cached features.

``python -m acme_research.ablations.privacy --features text=FILE digits=FILE`` uses the worlds, the
training and the mathematics of ``personalisation.py``. Features are judged where mixing weights
matter most, with header weights mixed by the debiased Ŵ; noise in importance sets where those are
mixed. Weights are compared with those of the same samples sent as they are (half precision):
Spearman's rank correlation over all pairs of devices, the largest difference, and the effective
peers. Accuracies are paired by device; intervals are Student's over seeds. Beside them stands the
first rival of every run: a regression on each device, which sends nothing, and the mean of all.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.config.personalization import Privacy
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.privacy.accounting import epsilon
from acme_fleet.privacy.noise import protect_features, protect_importance, quantize
from acme_research.ablations.personalisation import PROBE, regressions
from acme_research.ablations.personalisation_fleets import DEVICES, World, load, make_world
from acme_research.ablations.personalisation_methods import (
    METHODS,
    OURS,
    ROUNDS,
    First,
    personalise,
    similarity,
)
from acme_research.frame.intervals import mean_interval, rank_correlation
from acme_research.frame.probe import on_features
from acme_research.frame.record import write_result
from acme_research.frame.runs import add_line, parser_of, read_lines

DELTA = 1e-5
EPSILONS = (1.0, 3.0, 10.0)
CLIP = {"text": 0.3, "digits": 1.1}  # the median length of a feature, in √hidden
PLAIN = "importance as it is"
MOST_SEEDS = {"text": 3, "digits": 5}
PARTITIONS = ("c1", "c3")
Change = Callable[[np.ndarray, int], np.ndarray]


def multiplier(wanted: float, releases: int) -> float:
    """The noise multiplier of each of several releases whose ε together is ``wanted``."""
    low, high = 0.01, 1000.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        if epsilon([middle] * releases, DELTA) > wanted:
            low = middle
        else:
            high = middle
    return high


def sent(privacy: Privacy, rows: np.ndarray, seed: int) -> np.ndarray:
    """A device's feature sample as the edge server gets it."""
    found = quantize(
        protect_features(rows, privacy, seed, secret=b"%d" % seed), privacy.sketch_bits
    )
    return found.values.double().numpy() * found.scale


def coordinates(dim: int, rows: np.ndarray, seed: int) -> np.ndarray:
    """A rival of the projection: some of the features."""
    return rows[:, np.random.default_rng(seed).permutation(rows.shape[1])[:dim]]


def cauchy(dim: int, rows: np.ndarray, seed: int) -> np.ndarray:
    """A rival that keeps L1 distances, if one takes medians and not the ground cost's sums."""
    return rows @ np.random.default_rng(seed).standard_cauchy((rows.shape[1], dim))


def feature_changes(what: str) -> dict[str, Change]:
    def of(**settings: Any) -> Change:
        return partial(sent, Privacy(feature_clip=CLIP[what], **settings))

    changes: dict[str, Change] = {"as they are": of()}
    for dim, bits in itertools.product((None, 64, 16), (16, 8)):
        if (dim, bits) != (None, 16):
            changes[f"sketch {dim or 'none'}, {bits} bits"] = of(sketch_dim=dim, sketch_bits=bits)
    for dim, eps in itertools.product((None, 16), EPSILONS):
        noise = multiplier(eps, 1)
        changes[f"sketch {dim or 'none'}, epsilon {eps:g}"] = of(
            sketch_dim=dim, feature_noise=noise
        )
    changes["16 of the features"] = partial(coordinates, 16)
    changes["Cauchy sketch 16"] = partial(cauchy, 16)
    return changes


def run_features(what: str, world: World, first: First, done: set[str]) -> Iterator[dict[str, Any]]:
    exact = similarity(OURS, world)
    pairs = ~np.eye(DEVICES, dtype=bool)
    for name, change in feature_changes(what).items():
        if name in done:
            continue
        samples = [change(own[: OURS.feature_samples], world.seed) for own in world.samples]
        changed = replace(world, samples=samples)
        weights = similarity(OURS, changed)
        equal = np.ptp(weights[pairs]) == 0  # everybody listens to all alike
        found = {
            "rank correlation": 0.0 if equal else rank_correlation(exact[pairs], weights[pairs]),
            "largest difference": float(np.abs(exact - weights).max()),
        }
        yield {"change": name, **found, **personalise(OURS, changed, first)}


def run_importance(world: World, first: First, done: set[str]) -> Iterator[dict[str, Any]]:
    sends: dict[str, Callable[[ImportanceSet], ImportanceSet]] = {PLAIN: lambda own: own}
    for eps in EPSILONS:
        noise, secret = multiplier(eps, ROUNDS), b"%d" % world.seed
        sends[f"importance, epsilon {eps:g}"] = partial(
            protect_importance, multiplier=noise, secret=secret
        )
    for name, send in sends.items():
        if name not in done:
            yield {"change": name, **personalise(METHODS["ACME debiased"], world, first, send)}


def run_probe(world: World, whole: int | None, done: set[str]) -> Iterator[dict[str, Any]]:
    if PROBE not in done:
        found = on_features(world.private, world.shared, world.classes.shape[1], whole)
        yield {"change": PROBE, **found.pop("accuracy"), **found}


def tabulate(runs: list[dict[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for fleet in dict.fromkeys((r["data"], r["partition"]) for r in runs):
        here = [r for r in runs if (r["data"], r["partition"]) == fleet]
        for change in dict.fromkeys(r["change"] for r in here):
            plain = PLAIN if change.startswith("importance") else "as they are"
            own, base = (
                sorted((r for r in here if r["change"] == name), key=lambda r: r["seed"])
                for name in (change, plain)
            )
            lost = mean_interval(
                [
                    100 * float(np.mean(np.subtract(b["test"], a["test"])))
                    for a, b in zip(own, base, strict=True)
                ],
                2,
            )
            told: dict[str, Any] = {
                "test": round(float(np.mean([r["test"] for r in own])), 4),
                "validation": round(float(np.mean([r["validation"] for r in own])), 4),
                "points lost": lost["mean"],
                "interval": lost["interval"],
                "seeds": [r["seed"] for r in own],
                "peers": round(float(np.mean([r["peers"] for r in own])), 2),
            }
            for key in ("rank correlation", "largest difference"):
                if key in own[0]:
                    told[key] = round(float(np.mean(np.nan_to_num([r[key] for r in own]))), 3)
            table.setdefault(" ".join(fleet), {})[change] = told
    return table


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--features", nargs="+", required=True, metavar="text|digits=FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs/privacy.jsonl"))
    arguments = parser.parse_args()
    for given in arguments.features:
        what, _, path = given.partition("=")
        tensors, about = load(Path(path))
        seeds = range(min(arguments.seeds, MOST_SEEDS[what]))
        for seed, partition in itertools.product(seeds, PARTITIONS):
            told = {"data": what, "partition": partition, "seed": seed}
            earlier = [r for r in read_lines(arguments.runs) if told.items() <= r.items()]
            done = {r["change"] for r in earlier}
            world, first = make_world(what, tensors, about, partition, seed), {}
            runs = (
                run_probe(world, about.get("bytes"), done),
                run_features(what, world, first, done),
                run_importance(world, first, done),
            )
            for run in itertools.chain(*runs):
                add_line(arguments.runs, told | run)
            print(f"{what} {partition} {seed}", flush=True)
    settings = {
        "delta": DELTA,
        "feature samples": OURS.feature_samples,
        "rounds": ROUNDS,
        "clip": CLIP,
        "noise multiplier of features": {f"{e:g}": multiplier(e, 1) for e in EPSILONS},
        "noise multiplier of importance": {f"{e:g}": multiplier(e, ROUNDS) for e in EPSILONS},
    }
    runs = read_lines(arguments.runs)
    probes = [run for run in runs if run["change"] == PROBE]
    table = {
        "settings": settings,
        "probe": regressions(probes),
        "results": tabulate([run for run in runs if run["change"] != PROBE]),
    }
    write_result("privacy", table)


if __name__ == "__main__":
    main()
