"""Fig. 11: what aggregation gains over the coarse model, under four distributions of data.

The mathematics of Algorithm 2 on cached features, as in ``personalisation.py``: every method has
the same devices, splits, coarse header and number of trainings.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from acme_fleet.models.storage import write_tensors
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_research.ablations import personalisation as algorithm2
from acme_research.ablations import personalisation_fleets as fleets
from acme_research.frame.bench import Bench
from acme_research.frame.drawing import bars, level
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.probe import Places, on_features
from acme_research.frame.story import Findings, Goal, Story

METHODS = ("Alone", "Avg", "JS", "ACME as printed", "ACME debiased", "FedAvg", "weights, debiased")
OURS = "weights, debiased"


def features(bench: Bench) -> Path:
    """The features of a frozen backbone, computed once for all seeds."""
    what = bench.extra["personalisation"]["features"]
    path = bench.options.out / f"features-{what}.safetensors"
    if not path.exists():
        tensors, about = (
            fleets.text(bench.data_folder / "clinc150") if what == "text" else fleets.digits()
        )
        write_tensors(path, tensors, about)
    return path


def measure(bench: Bench) -> dict[str, Any]:
    settings = bench.extra["personalisation"]
    told: dict[str, Any] = {}
    for partition in settings["partitions"]:
        what = settings["features"]
        world = _world(bench, partition)
        first: dict[float, Any] = {}
        coarse = [evaluate(CLASSIFICATION, world.coarse, own.test).score for own in world.private]
        told[partition] = {"coarse": coarse}
        _regressions(bench, partition, world)
        for name in METHODS:
            told[partition][name] = bench.piece(
                f"fig11-{what}/{partition}-{name}",
                lambda n=name, w=world, f=first: algorithm2.personalise(
                    algorithm2.METHODS[n], w, f
                ),
            )
    return told


def _world(bench: Bench, partition: str) -> fleets.World:
    tensors, about = fleets.load(features(bench))
    what = bench.extra["personalisation"]["features"]
    return fleets.make_world(what, tensors, about, partition, bench.seed)


def _regressions(bench: Bench, partition: str, world: fleets.World | None = None) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        own = world or _world(bench, partition)
        _, about = fleets.load(features(bench))
        return on_features(own.private, own.shared, about["classes"], about.get("bytes"))

    what = bench.extra["personalisation"]["features"]
    return bench.piece(f"fig11-{what}/{partition}-probe", work)


def probe(bench: Bench) -> Places:
    """The first rival of every run, on the features that all methods have."""
    places: Places = {}
    for partition in bench.extra["personalisation"]["partitions"]:
        found = _regressions(bench, partition)
        means = {way: float(np.mean(column)) for way, column in found["accuracy"].items()}
        places[partition] = found | {"accuracy": means}
    return places


def find(rows: list[dict[str, Any]]) -> Findings:
    numbers: dict[str, Any] = {}
    gains: dict[str, dict[str, list[float]]] = {}
    for partition in rows[0]:
        here = [row[partition] for row in rows]
        own = gains[partition] = {
            name: [float(np.mean(np.subtract(row[name]["test"], row["coarse"]))) for row in here]
            for name in METHODS
        }
        numbers[partition] = {
            "gain": {name: mean_interval(values) for name, values in own.items()},
            "against Alone": {name: paired(own[name], own["Alone"]) for name in METHODS[1:]},
        }

    def over(name: str, rival: str) -> dict[str, Any]:
        gaps = [np.subtract(own[name], own[rival]) for own in gains.values()]
        return mean_interval(np.mean(gaps, axis=0).tolist())

    printed, ours = over("ACME as printed", "Alone"), over(OURS, "Alone")
    numbers |= {"as printed - Alone": printed, "weights, debiased - Alone": ours}
    numbers["weights, debiased - FedAvg"] = over(OURS, "FedAvg")
    parts = "; ".join(
        f"{partition}: "
        + " ".join(f"{100 * np.mean(gains[partition][name]):.1f}" for name in METHODS)
        for partition in gains
    )
    low = printed["interval"][0] if printed["interval"] else printed["mean"]
    goal = Goal(
        f"mixing importance as printed is better than Alone (the paper's claim): {text(printed)} "
        f"points",
        printed["mean"],
        low > 0,
        f"mixing the headers' weights instead: {text(ours)} points over Alone",
    )
    return Findings(
        f"gain in points ({', '.join(METHODS)}): {parts}; over Alone, mean of distributions: as "
        f"printed {text(printed)}, weights {text(ours)}",
        numbers,
        [goal],
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    partitions = list(result["seeds"][0])
    (row,) = figure.subplots(1, len(partitions), squeeze=False)
    for axes, partition in zip(row, partitions, strict=True):
        bars(axes, result["numbers"][partition]["gain"], "gain, points")
        coarse = float(np.mean([row[partition]["coarse"] for row in result["seeds"]]))
        level(axes, result.get("probe"), partition, coarse)
        axes.set_title(partition, fontsize=8)


STORY = Story(
    "fig11",
    "gain of aggregation under four distributions",
    "gain in points (Alone, Avg, JS, ACME): IID 2.0 3.8 3.4 4.0; C1 1.9 2.4 3.0 3.8; C2 2.0 1.4 "
    "3.2 3.8; C3 1.8 0.6 2.6 3.8 (one seed, 500 test images a client)",
    measure,
    find,
    draw,
    probe,
    (lambda benches: [(benches[0], features)],),
)
