"""Fig. 10: who is like whom, by Wasserstein distance and by Jensen-Shannon divergence.

Five devices: 0 to 2 share one distribution, 3 and 4 another. A matrix is good if a device's most
similar peers are those of its own distribution.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import join
from acme_fleet.edge.similarity import debias, distance_matrix, mixing_weights
from acme_fleet.models.features import feature_samples
from acme_research.frame.bench import Bench
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.story import Findings, Story
from acme_research.rivals.aggregation import jensen_shannon_distances

GROUP = np.array([0, 0, 0, 1, 1])
SAMPLES = (16, 32, 64)
KEYS = ("AUC", "weight on the own distribution")
METHODS = ("Wasserstein, as printed", "Wasserstein, debiased", "JS")


def measure(bench: Bench) -> dict[str, Any]:
    cells = bench.extra["backbones"]["large"]
    private = join([own.train for own in bench.world.private.values()])
    classes = bench.random("fig10 classes").permutation(len(bench.world.classes))
    half = len(classes) // 2
    # Neighbouring distributions: a quarter of the classes is in both.
    sets = [classes[: half + half // 4], classes[half - half // 4 :]]
    backbone = bench.backbone(Variant(*cells))
    found: dict[str, Any] = {}
    for count in SAMPLES:
        features = []
        for device, group in enumerate(GROUP):
            held = np.flatnonzero(np.isin(private.labels.numpy(), sets[group]))
            chosen = bench.random("fig10", count, device).choice(held, count, replace=False)
            samples = private[torch.from_numpy(np.sort(chosen))]
            features.append(feature_samples(backbone, samples).inputs["pooled"])
        found[str(count)] = _compare([f.half().double().numpy() for f in features], bench)
    return found


def _compare(samples: list[np.ndarray], bench: Bench) -> dict[str, Any]:
    transport, js = distance_matrix(samples), jensen_shannon_distances(samples)
    others = ~np.eye(len(GROUP), dtype=bool)
    distances = {
        "Wasserstein, as printed": (transport, 1.0),
        "Wasserstein, debiased": (debias(transport, samples), 0.1),
        "JS": (js / np.median(js[others]), 0.1),
    }
    together = (GROUP[:, None] == GROUP[None, :])[others]
    told = {}
    for name, (matrix, temperature) in distances.items():
        weights = mixing_weights(matrix, temperature)
        told[name] = {
            "weights": np.round(weights, 4).tolist(),
            "AUC": float(roc_auc_score(together, -matrix[others])),
            "weight on the own distribution": _own_share(weights),
        }
    return told


def _own_share(weights: np.ndarray) -> float:
    """Of what a device gives to others, the share that goes to its own distribution."""
    others = np.where(np.eye(len(GROUP), dtype=bool), 0.0, weights)
    own = np.where(GROUP[:, None] == GROUP[None, :], others, 0.0)
    return float((own.sum(axis=1) / others.sum(axis=1)).mean())


def find(rows: list[dict[str, Any]]) -> Findings:
    numbers: dict[str, Any] = {}
    for count in rows[0]:
        for name in METHODS:
            columns = {key: [row[count][name][key] for row in rows] for key in KEYS}
            told = {key: mean_interval(values) for key, values in columns.items()}
            numbers.setdefault(count, {})[name] = told
        ours, theirs = (
            [row[count][name]["AUC"] for row in rows] for name in ("Wasserstein, debiased", "JS")
        )
        numbers[count]["AUC, Wasserstein debiased - JS"] = paired(ours, theirs)
    at = numbers[str(SAMPLES[1])]
    parts = "; ".join(
        f"{name}: {text(at[name]['weight on the own distribution'], 2, 1)}, AUC "
        f"{text(at[name]['AUC'], 2, 1)}"
        for name in METHODS
    )
    return Findings(
        f"share of the weight given to others that goes to the own distribution (.40 if all were "
        f"equal) and AUC of finding its peers, {SAMPLES[1]} features each: {parts}",
        numbers,
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    first = result["seeds"][0][str(SAMPLES[1])]
    for axes, name in zip(figure.subplots(1, len(METHODS)), METHODS, strict=True):
        image = axes.imshow(first[name]["weights"], cmap="viridis", vmin=0)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("device")
        figure.colorbar(image, ax=axes, shrink=0.7)


STORY = Story(
    "fig10",
    "similarity matrices of five devices, 0-2 and 3-4 alike",
    "the Wasserstein matrix shows the two groups more clearly than the Jensen-Shannon one (a "
    "picture, no figure; the authors' distance is one-dimensional on flattened features)",
    measure,
    find,
    draw,
)
