"""Similarity in one large cluster: all pairs exactly, and near devices by a sketch.

Samples are features of devices of three kinds of data, each with a middle of its own. Processor
seconds of both ways, and the share of the weights that goes to devices of a receiver's own kind.
Then whole runs of one fleet of 120 devices with either: the accuracy that near devices cost.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from acme_fleet.cloud import replies
from acme_fleet.edge import similarity
from acme_fleet.edge.similarity import debias, distance_matrix, mixing_weights, near_weights
from acme_fleet.messages.peer_weights import PeerWeights
from acme_fleet.pipeline import customize
from acme_research.frame.intervals import paired
from acme_research.frame.many_devices import many_devices
from acme_research.frame.record import write_benchmark

KINDS, ROWS, HIDDEN, TEMPERATURE = 3, 12, 32, 0.1
EXACT, SPARSE, RUN = (250, 500), (500, 1000, 2000), 120
APART = 0.5  # of a device's own middle, in standard deviations of a feature


def samples(devices: int, seed: int = 0) -> list[np.ndarray]:
    """Features of devices of three kinds; two of one kind differ a little too."""
    draw = np.random.default_rng(seed)
    kinds = draw.normal(size=(KINDS, HIDDEN))
    own = 0.2 * draw.normal(size=(devices, HIDDEN))
    return [
        draw.normal(size=(ROWS, HIDDEN)) + APART * kinds[n % KINDS] + own[n] for n in range(devices)
    ]


WAYS: dict[str, Callable[[list[np.ndarray]], PeerWeights]] = {
    "all pairs": lambda given: mixing_weights(debias(distance_matrix(given), given), TEMPERATURE),
    "near": lambda given: near_weights(given, TEMPERATURE, debiased=True),
}


def within_kind(weights: PeerWeights) -> float:
    """The share of all weight that goes to devices of the receiver's own kind, itself included."""
    dense = weights if isinstance(weights, np.ndarray) else weights.toarray()  # type: ignore[union-attr]
    kind = np.arange(len(dense)) % KINDS
    return float((dense * (kind[:, None] == kind[None])).sum() / len(dense))


def measure(way: str, devices: int) -> dict[str, float]:
    given = samples(devices)
    begun = time.process_time()
    weights = WAYS[way](given)
    seconds = time.process_time() - begun
    return {"devices": devices, "cpu_s": seconds, "within kind": within_kind(weights)}


def accuracies() -> dict[str, list[float]]:
    """Accuracy of every device, in a run of all pairs and in one of near devices."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        fleet = many_devices(RUN, Path(folder))
        for name, most in (("all pairs", RUN), ("near", 0)):
            known, similarity.MOST_DENSE = similarity.MOST_DENSE, most
            replies.MOST_DENSE = most
            try:
                summary = customize(fleet, Path(folder) / name)
            finally:
                similarity.MOST_DENSE = replies.MOST_DENSE = known
            found[name] = [device.accuracy for device in summary.devices]
    return found


def main() -> None:
    sizes = {"all pairs": EXACT, "near": SPARSE}
    rows = {way: [measure(way, count) for count in counts] for way, counts in sizes.items()}
    print(json.dumps(rows, indent=1), flush=True)
    counts, seconds = (np.log([row[key] for row in rows["near"]]) for key in ("devices", "cpu_s"))
    slope = round(float(np.polyfit(counts, seconds, 1)[0]), 3)
    scores = accuracies()
    cost = paired(scores["all pairs"], scores["near"])
    write_benchmark(
        "scale_cluster",
        slope,
        (slope, slope),
        {
            **rows,
            "interval": "one seed, one run of each size",
            "accuracy of all pairs": float(np.mean(scores["all pairs"])),
            "accuracy that near devices cost": cost,
        },
    )


if __name__ == "__main__":
    main()
