"""The choice by Eq. 13 against the best trade-off score that its window allows.

Tables: the paper's accuracies of ViT-B/16 on CIFAR-100 over width and depth (linear and searched
headers), between its sixteen cells by linear interpolation; random accuracy curves with measurement
noise; independent random objectives. Each with 1 - accuracy and with a cross-entropy as the loss.
Then candidates that were measured in real runs, five of digits and one of 20 classes of CIFAR-100,
with their validation loss, scored by their validation accuracy and by the accuracy on test data
that no choice saw (``research/results/candidates.json``). All with random constants of Eq. 2. Every
storage limit from 10 % to 100 % of the reference model and every window is tried.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pandas as pd
from scipy.interpolate import RegularGridInterpolator

from acme_fleet.config.backbone import Rule, Selection
from acme_fleet.config.devices import Energy
from acme_fleet.cost.energy import energy_j
from acme_fleet.selection.choice import match
from acme_research.frame.intervals import bootstrap_interval
from acme_research.frame.places import CANDIDATES
from acme_research.frame.record import write_benchmark
from acme_research.rivals.selection import (
    greedy_accuracy,
    greedy_size,
    oracle,
    random_choice,
    trade_off_scores,
    window_oracle,
)

SEEDS = list(range(20))
LIMITS = np.linspace(0.1, 1.0, 19)
WINDOWS = [0.02, 0.05, 0.1, 0.2]
DEFAULT_WINDOW = Selection().performance_window
ROOM = 0.5  # a limit "leaves room" from half of the reference model's size on; default window

# METHOD 10: rows depth 1, .75, .5, .25; columns width 1, .75, .5, .25.
LINEAR = """.9207 .9060 .8677 .7054 .8955 .8723 .8075 .6206
            .7921 .7337 .6401 .4236 .4381 .3990 .3375 .2262"""
SEARCHED = """.9524 .9367 .9234 .8400 .9365 .9268 .9063 .8203
              .9085 .8672 .8516 .75 .8963 .8182 .7734 .6767"""

MEASURED = json.loads(CANDIDATES.read_text())

Table = tuple[np.ndarray, np.ndarray]  # accuracies (candidates,), objectives (candidates, 3)
RULES: tuple[Rule, ...] = get_args(Rule)
BEST = "same-window oracle"


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Width and relative depth of ``side`` x ``side`` candidates."""
    axis = np.linspace(0.25, 1.0, side)
    depth, width = np.meshgrid(axis, axis, indexing="ij")
    return width.ravel(), depth.ravel()


def costs(width: np.ndarray, depth: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Energy by Eq. 1-2 with random constants, and size with a random part that stays."""
    power, latency = generator.uniform((0.02, 0.05), (0.3, 1.0))
    device = Energy(
        power_w=1, power_per_layer_w=power, latency_s=1, latency_per_layer_s=latency, epochs=1
    )
    sizes = generator.uniform(0, 0.15) + width * depth
    return np.stack([energy_j(device, width, 12 * depth, patches=196), sizes / sizes.max()], axis=1)


def paper(cells: str, side: int) -> Callable[[np.random.Generator], Table]:
    """The paper's measured accuracies on a ``side`` x ``side`` grid."""
    axis = np.array([0.25, 0.5, 0.75, 1.0])
    accuracy_of = RegularGridInterpolator(
        (axis, axis), np.array(cells.split(), float)[::-1].reshape(4, 4)
    )

    def draw(generator: np.random.Generator) -> Table:
        width, depth = grid(side)
        accuracies = accuracy_of(np.stack([depth, width], axis=1))
        return accuracies, np.c_[1 - accuracies, costs(width, depth, generator)]

    return draw


def curves(generator: np.random.Generator) -> Table:
    """Accuracy that saturates in width and depth, with half a point of noise."""
    width, depth = grid(12)
    top, steepness = generator.uniform((0.7, 1.0), (0.98, 8.0))
    powers = generator.uniform(0.3, 1.5, 2)
    capacity = width ** powers[0] * depth ** powers[1] + 0.1
    accuracies = top * (1 - np.exp(-steepness * capacity)) + generator.normal(0, 0.005, width.shape)
    return accuracies, np.c_[1 - accuracies, costs(width, depth, generator)]


def independent(generator: np.random.Generator) -> Table:
    """Objectives that have nothing to do with each other."""
    accuracies, energies, sizes = generator.uniform((0.3, 0.1, 0.1), (0.95, 1, 1), (144, 3)).T
    return accuracies, np.stack([1 - accuracies, energies, sizes / sizes.max()], axis=1)


def cross_entropy(draw: Callable[[np.random.Generator], Table]) -> Callable[..., Table]:
    """The same table with a cross-entropy that follows the accuracy to within 2 %."""

    def drawn(generator: np.random.Generator) -> Table:
        accuracies, objectives = draw(generator)
        noise = np.exp(generator.normal(0, 0.02, accuracies.shape))
        losses = -np.log(np.clip(accuracies, 0.02, 0.995)) * generator.uniform(0.8, 2.0) * noise
        return accuracies, np.c_[losses, objectives[:, 1:]]

    return drawn


def measured(fleet: str, scored_by: str) -> Callable[[np.random.Generator], Table]:
    """Candidates of real runs of one fleet, any of its seeds."""
    runs = [run["candidates"] for run in MEASURED.values() if run["fleet"] == fleet]

    def draw(generator: np.random.Generator) -> Table:
        run = {
            name: np.array(column) for name, column in runs[generator.integers(len(runs))].items()
        }
        energies = costs(run["width"], run["depth"] / run["depth"].max(), generator)[:, 0]
        sizes = run["size_bytes"] / run["size_bytes"].max()
        return run[scored_by], np.stack([run["loss"], energies, sizes], axis=1)

    return draw


MADE = {"random curves": curves, "independent": independent}
FAMILIES: dict[str, Callable[[np.random.Generator], Table]] = {
    "paper, linear, 16 cells": paper(LINEAR, 4),
    "paper, linear, 144": paper(LINEAR, 12),
    "paper, searched, 16 cells": paper(SEARCHED, 4),
    "paper, searched, 144": paper(SEARCHED, 12),
    **MADE,
    "paper, linear, 144, CE": cross_entropy(paper(LINEAR, 12)),
    "paper, searched, 144, CE": cross_entropy(paper(SEARCHED, 12)),
    **{f"{name}, CE": cross_entropy(draw) for name, draw in MADE.items()},
    "measured, digits": measured("digits", "accuracy"),
    "measured, digits, on test": measured("digits", "test_accuracy"),
    "measured, CIFAR-20": measured("cifar20", "accuracy"),
    "measured, CIFAR-20, on test": measured("cifar20", "test_accuracy"),
}


def score_all(table: Table, limit: float, window: float, seed: int) -> dict[str, float]:
    """Trade-off score of every way to choose, for one limit and window."""
    accuracies, objectives = table
    losses, energies, sizes = objectives.T
    scores = trade_off_scores(accuracies, energies, sizes)
    near = np.where(losses <= losses[sizes <= limit].min() + window, sizes, np.inf)
    chosen = {
        str(rule): match(objectives, sizes, limit, window, "cluster", rule).chosen for rule in RULES
    } | {
        "Greedy-Accuracy": greedy_accuracy(losses, sizes, limit, "cluster"),
        "Greedy-Size": greedy_size(losses, sizes, limit, "cluster"),
        "Random": random_choice(sizes, limit, "cluster", np.random.default_rng(seed)),
        BEST: window_oracle(scores, losses, sizes, limit, window, "cluster"),
        "oracle, loss within window": oracle(scores, near, limit, "cluster"),
        "oracle, no window": oracle(scores, sizes, limit, "cluster"),
    }
    return {name: float(scores[index]) for name, index in chosen.items()}


def measure(draw: Callable[[np.random.Generator], Table], seed: int) -> pd.DataFrame:
    """Scores of one table, a row for each limit that something fits into and each window."""
    table = draw(np.random.default_rng(seed))
    cases = itertools.product(LIMITS[table[1][:, 2].min() <= LIMITS], WINDOWS)
    rows = [{"limit": at, "window": w, **score_all(table, at, w, seed)} for at, w in cases]
    return pd.DataFrame(rows)


def ratio(scores: Any, name: str, rival: str = BEST) -> float:
    """Mean score ÷ the rival's mean score, over limits, windows and seeds."""
    return float(scores[name].mean() / scores[rival].mean())


def times(scores: Any, name: str, rival: str) -> float | None:
    """The same where the rival's mean score is positive; otherwise a ratio says nothing."""
    return ratio(scores, name, rival) if scores[rival].mean() > 0 else None


def summarise(scores: Any) -> dict[str, float | None]:
    """One row of the table that is printed."""
    row: dict[str, float | None] = {}
    best = scores[BEST]
    for rule in RULES:
        gap = best - scores[rule]
        row[rule] = ratio(scores, rule)
        row[f"{rule}: largest gap"] = float(gap.max())
        row[f"{rule}: share within 2 %"] = float((gap <= 0.02 * best.abs()).mean())
    rivals = scores.columns.drop(["limit", "window", BEST, *RULES])
    row |= {rival: ratio(scores, rival) for rival in rivals}
    room = scores[(scores["limit"] >= ROOM) & (scores["window"] == DEFAULT_WINDOW)]
    for rule in RULES:
        row[f"{rule} / Greedy-Accuracy, room"] = times(room, rule, "Greedy-Accuracy")
    for rival in ("Greedy-Accuracy", "Greedy-Size"):
        row[f"nearest / {rival}"] = times(scores, "nearest", rival)
    for name in ("nearest", "Greedy-Accuracy", "Greedy-Size"):
        row[f"score of {name}"] = float(scores[name].mean())
    return row


def interval(scores: Any) -> tuple[float, float]:
    """95 % interval of the default rule's ratio when seeds are drawn again."""
    sums = scores.groupby("seed")[["nearest", BEST]].sum().to_numpy()

    def drawn(picks: np.ndarray) -> np.ndarray:
        ours, best = sums[picks].sum(axis=1).T
        return ours / best

    return bootstrap_interval(drawn, len(sums), 1000)


def main() -> None:
    found = {(name, seed): measure(draw, seed) for name, draw in FAMILIES.items() for seed in SEEDS}
    scores: Any = pd.concat(found)
    scores.index.names = ["family", "seed", "case"]
    rows = {name: summarise(scores.loc[name]) for name in FAMILIES} | {"all": summarise(scores)}
    by_window = {
        rule: {str(w): ratio(own, rule) for w, own in scores.groupby("window")} for rule in RULES
    }
    print(pd.DataFrame(rows).to_string(float_format="{:.3f}".format, na_rep="–"))
    print(pd.DataFrame(by_window))
    details = {"windows": WINDOWS, "limits": LIMITS.tolist(), "tables": rows}
    write_benchmark(
        "selection_quality",
        ratio(scores, "nearest"),
        interval(scores),
        details | {"ratio by window": by_window},
        seeds=SEEDS,
    )


if __name__ == "__main__":
    main()
