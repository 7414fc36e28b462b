"""Fig. 9: matching models to devices, against Greedy-Accuracy, Greedy-Size and Random."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.models.features import patches
from acme_fleet.selection.choice import match
from acme_research.frame.bench import Bench
from acme_research.frame.drawing import bars
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.story import Findings, Goal, Story
from acme_research.rivals.selection import (
    efficiency_ratio,
    greedy_accuracy,
    greedy_size,
    random_choice,
    trade_off_scores,
    window_oracle,
)

OURS, RIVAL = "ACME", "Greedy-Accuracy"
LIMITS = np.linspace(0.3, 1.0, 8)  # shares of the largest candidate
WINDOWS = (0.05, 0.1, 0.2, 0.4, 0.8)
DRAWS = 50  # of Random, and repetitions for the times
SCORE, SECONDS = "trade-off score", "seconds"
GOAL = 0.30


def measure(bench: Bench) -> dict[str, Any]:
    table = {name: np.array(column) for name, column in bench.candidates().items()}
    tokens = patches(bench.elastic.classifier.backbone.config, bench.world.public.test.inputs)
    window = bench.fleet.selection.performance_window
    rows: dict[str, list[dict[str, float]]] = {}
    for cluster in bench.fleet.clusters:
        devices = [device.energy for device in cluster.devices]
        energy = worst_energy_j(devices, table["width"], table["depth"], tokens)
        for limit in LIMITS * table["size_bytes"].max():
            for name, figures in _one_case(table, energy, float(limit), window, bench).items():
                rows.setdefault(name, []).append(figures)
    means = {
        name: {key: float(np.mean([case[key] for case in cases])) for key in cases[0]}
        for name, cases in rows.items()
    }
    return {"performance window": window, "cases": len(rows[OURS]), "means": means}


def _one_case(
    table: dict[str, np.ndarray], energy: np.ndarray, limit: float, window: float, bench: Bench
) -> dict[str, dict[str, float]]:
    """One cluster under one limit; choices see validation data, figures are of test data."""
    losses, sizes = table["loss"], table["size_bytes"].astype(float)
    accuracy = table["test_accuracy"]
    scores = trade_off_scores(accuracy, energy, sizes)
    objectives = np.column_stack([losses, energy, sizes])
    seen = trade_off_scores(table["accuracy"], energy, sizes)
    random = bench.random("fig9", str(limit))

    def ours(gamma: float, rule: Any = "nearest") -> Callable[[], int]:
        return lambda: match(objectives, sizes, limit, gamma, "cluster", rule).chosen

    methods: dict[str, Callable[[], int]] = {
        OURS: ours(window),
        "ACME, literal Eq. 13": ours(window, "literal"),
        **{f"ACME, window {gamma:g}": ours(gamma) for gamma in WINDOWS},
        RIVAL: lambda: greedy_accuracy(losses, sizes, limit, "cluster"),
        "Greedy-Size": lambda: greedy_size(losses, sizes, limit, "cluster"),
        "Random": lambda: random_choice(sizes, limit, "cluster", random),
        "same-window oracle": lambda: window_oracle(seen, losses, sizes, limit, window, "cluster"),
    }
    columns = {
        SCORE: scores,
        "accuracy": accuracy,
        "size": sizes / sizes.max(),
        "energy": energy / energy.max(),
        "accuracy per energy": efficiency_ratio(accuracy, energy / energy.max()),
        "accuracy per size": efficiency_ratio(accuracy, sizes / sizes.max()),
    }
    figures = {}
    for name, choose in methods.items():
        start = time.process_time()
        chosen = np.array([choose() for _ in range(DRAWS)])
        seconds = (time.process_time() - start) / DRAWS
        figures[name] = {key: float(column[chosen].mean()) for key, column in columns.items()}
        figures[name][SECONDS] = seconds
    return figures


def find(rows: list[dict[str, Any]]) -> Findings:
    means = [row["means"] for row in rows]
    numbers: dict[str, Any] = {
        name: {key: mean_interval([m[name][key] for m in means]) for key in means[0][name]}
        for name in means[0]
    }
    ours, rival = ([m[name][SCORE] for m in means] for name in (OURS, RIVAL))
    # A score may be negative: the gain is a share of the rival's absolute value.
    wide = max(WINDOWS)  # the widest, not the one that the test data like best
    gain, at_widest = (
        mean_interval([(m[name][SCORE] - b) / abs(b) for m, b in zip(means, rival, strict=True)])
        for name in (OURS, f"ACME, window {wide:g}")
    )
    slower = mean_interval([m[OURS][SECONDS] / m[RIVAL][SECONDS] for m in means])
    numbers["score against Greedy-Accuracy"] = paired(ours, rival) | {
        "share of its absolute value": gain
    }
    window = rows[0]["performance window"]
    goals = [
        Goal(
            f"trade-off score at least 30 % above Greedy-Accuracy's, as a share of its absolute "
            f"value: {text(gain, 0)} % at window {window:g} "
            f"({numbers[OURS][SCORE]['mean']:.3f} against {numbers[RIVAL][SCORE]['mean']:.3f}; "
            f"accuracy {text(numbers[OURS]['accuracy'])} against "
            f"{text(numbers[RIVAL]['accuracy'])} %)",
            gain["mean"],
            gain["mean"] >= GOAL,
            f"wider windows: {text(at_widest, 0)} % at {wide:g}",
        ),
        Goal(
            f"choosing, grid construction included, is not slower than Greedy-Accuracy: "
            f"{text(slower, 0, 1)} times its time ({1e6 * numbers[OURS][SECONDS]['mean']:.0f} µs)",
            slower["mean"],
            slower["mean"] <= 1,
            "one choice for each distinct case (match_many) makes a million devices a second, not "
            "one choice faster",
        ),
    ]
    parts = ", ".join(
        f"{key} {numbers[OURS][key]['mean']:.3f}/{numbers[RIVAL][key]['mean']:.3f}"
        for key in (SCORE, "accuracy", "size", "energy")
    )
    headline = (
        f"ACME/Greedy-Accuracy: {parts}; score {text(gain, 0)} % higher (window {window:g}), "
        f"{text(at_widest, 0)} % at window {wide:g}; time {text(slower, 0, 1)} times"
    )
    return Findings(headline, numbers, goals)


def draw(figure: Figure, result: dict[str, Any]) -> None:
    names = [OURS, RIVAL, "Greedy-Size", "Random", "same-window oracle"]
    keys = ("accuracy per energy", "accuracy per size", SCORE)
    for axes, key in zip(figure.subplots(1, 3), keys, strict=True):
        bars(axes, {name: result["numbers"][name][key] for name in names}, key, 1.0)


STORY = Story(
    "fig9",
    "matching models to devices",
    "highest efficiencies, selection 71.2 % faster, score at least +28.9 %; authors' figures: "
    "accuracy .896, size .667, energy .569 (score .278) against .915 .750 .649 (.216) of "
    "Greedy-Accuracy; the optimum on their grid is .384",
    measure,
    find,
    draw,
)
