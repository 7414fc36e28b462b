"""Seconds to match very many clusters, with the grids built in the time that is counted.

Every device is a cluster of its own with its own storage limit and one of eight energy types.
The rivals get the same table: Greedy-Accuracy and Greedy-Size device by device, as the paper
runs them, and Greedy-Accuracy with a look-up like ours.
"""

import itertools
from collections.abc import Callable

import numpy as np

from acme_fleet.config.backbone import Selection
from acme_fleet.config.devices import Energy
from acme_fleet.cost.energy import energy_j
from acme_fleet.selection.choice import choose, match, match_many
from acme_research.frame.record import wall_times, write_benchmark
from acme_research.rivals.selection import greedy_accuracy, greedy_size, trade_off_scores

WINDOW = Selection().performance_window
TYPES = 8
REPETITIONS = 5


def make_tables(widths: int, depths: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Objectives of ``widths`` x ``depths`` candidates, ``(types, candidates, 3)``, and bytes."""
    generator = np.random.default_rng(seed)
    pairs = itertools.product(np.linspace(0.1, 1, widths), range(1, depths + 1))
    width, depth = np.array(list(pairs)).T
    share = width * depth / depths
    losses = 0.05 + 0.9 * np.exp(-5 * share**0.7) + generator.normal(0, 0.01, share.shape)
    sizes = np.round(2e6 + 84e6 * share).astype(np.int64)
    devices = [
        Energy(power_per_layer_w=power, latency_per_layer_s=latency)
        for power, latency in generator.uniform((0.1, 0.001), (2.0, 0.02), (TYPES, 2))
    ]
    energies = [energy_j(device, width, depth, patches=196) for device in devices]
    return np.stack([np.stack([losses, e, sizes], axis=1) for e in energies]), sizes


def make_clusters(sizes: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Limits and types of ``count`` clusters."""
    generator = np.random.default_rng(seed)
    limits = generator.integers(sizes.min(), int(1.1 * sizes.max()), count)
    return limits, generator.integers(0, TYPES, count)


def seconds_of(function: Callable[[], object], repetitions: int = REPETITIONS) -> np.ndarray:
    """Sorted times of the repetitions."""
    return np.sort(wall_times({"": function}, repetitions)[""])


def greedy_look_up(losses: np.ndarray, sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Greedy-Accuracy for all limits at once: the running best of the candidates by size."""
    order = np.lexsort((losses, sizes))
    best = np.minimum.accumulate(losses[order])
    leader = np.maximum.accumulate(np.where(losses[order] == best, np.arange(len(order)), 0))
    # Of equal losses the first, which is the smaller.
    first = np.searchsorted(-best, -best[leader], side="left")
    return order[first[np.searchsorted(sizes[order], limits, side="right") - 1]]


def time_matching(widths: int, depths: int, count: int, kinds: int = TYPES) -> np.ndarray:
    """Times of ``match_many`` for ``count`` clusters of ``kinds`` energy types."""
    tables, sizes = make_tables(widths, depths, seed=0)
    limits, types = make_clusters(sizes, count, seed=1)
    tables, types = tables[:kinds], types % kinds
    return seconds_of(lambda: match_many(tables, sizes, limits, types, WINDOW))


def time_one_by_one(count: int = 1000) -> dict[str, float]:
    """Microseconds and mean score per device over ``count`` devices, ours and the rivals."""
    tables, sizes = make_tables(12, 12, seed=0)
    limits, types = make_clusters(sizes, count, seed=1)
    losses = tables[0, :, 0]
    scores = np.stack([trade_off_scores(1 - losses, table[:, 1], sizes) for table in tables])
    ways: dict[str, Callable[[], list[int] | np.ndarray]] = {
        "ours, one by one": lambda: [
            match(tables[t], sizes, c, WINDOW, "device").chosen
            for c, t in zip(limits, types, strict=True)
        ],
        "ours, look-up": lambda: match_many(tables, sizes, limits, types, WINDOW),
        "Greedy-Accuracy, one by one": lambda: [
            greedy_accuracy(losses, sizes, c, "device") for c in limits
        ],
        "Greedy-Size, one by one": lambda: [
            greedy_size(losses, sizes, c, "device") for c in limits
        ],
        "Greedy-Accuracy, look-up": lambda: greedy_look_up(losses, sizes, limits),
    }
    figures = {}
    for name, way in ways.items():
        figures[f"{name}: us per device"] = 1e6 * float(np.median(seconds_of(way, 3))) / count
        figures[f"{name}: mean score"] = float(scores[types, np.asarray(way())].mean())
    for rival in [name for name in ways if not name.startswith("ours")]:
        name, how = rival.split(", ")
        for unit, words in (("us per device", "time"), ("mean score", "score")):
            ratio = figures[f"ours, {how}: {unit}"] / figures[f"{rival}: {unit}"]
            figures[f"{words} / {name}'s, {how}"] = ratio
    return figures


def time_large(count: int = 1_000_000) -> dict[str, float]:
    """Seconds for ``count`` devices by Greedy-Accuracy's look-up, and for one choice of ours."""
    tables, sizes = make_tables(12, 12, seed=0)
    limits, _ = make_clusters(sizes, count, seed=1)
    ways: dict[str, Callable[[], object]] = {
        "Greedy-Accuracy look-up s": lambda: greedy_look_up(tables[0, :, 0], sizes, limits),
        "one choice of 144, s": lambda: choose(tables[0], WINDOW),
    }
    return {name: float(np.median(seconds_of(way))) for name, way in ways.items()}


def main() -> None:
    counts = [10_000, 100_000, 1_000_000]
    times = {count: time_matching(12, 12, count) for count in counts}
    medians = [float(np.median(times[count])) for count in counts]
    slope = float(np.polyfit(np.log(counts), np.log(medians), 1)[0])
    figures = {}
    for kinds in (1, TYPES):
        name = f"1,000 candidates x 100,000 clusters, {kinds} energy types, s"
        figures[name] = float(np.median(time_matching(50, 20, 100_000, kinds)))
    figures |= time_one_by_one() | time_large()
    for name, figure in figures.items():
        print(f"{name:<60} {figure:10.4g}")
    write_benchmark(
        "selection_scale",
        medians[-1],
        (float(times[counts[-1]][0]), float(times[counts[-1]][-1])),
        {
            "seconds by devices": dict(zip(map(str, counts), medians, strict=True)),
            "slope": slope,
            "energy types": TYPES,
            "interval": f"fastest and slowest of {REPETITIONS} repetitions",
            **figures,
        },
        seeds=[0, 1],
    )


if __name__ == "__main__":
    main()
