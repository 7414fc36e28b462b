"""Local training of many devices with small headers: one after another, and together.

Both do the same work with the same numbers (a test compares them). The time of one after another
and of together are taken in turn, 100 devices at a time, so that a busy machine slows both. 5,000
devices are timed together only; their time one after another is scaled from 500.
"""

import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.refinement import LocalTraining, train_header
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.header.module import build_header, initial_tensors
from acme_fleet.simulation.batched import train_headers
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.frame.record import write_benchmark

TRAINING = Training(epochs=5, batch_size=16, learning_rate=3e-3)
HIDDEN, CLASSES, GRID, TOGETHER = 32, 10, (4, 4), 100
GENOTYPE = Genotype(
    blocks=(
        Block(inputs=(0, 1), operations=("conv3", "conv1")),
        Block(inputs=(2, 0), operations=("avg_pool", "identity")),
    ),
    cells=1,
    channels=8,
)
PLAN = HeaderPlan(genotype=GENOTYPE, hidden=HIDDEN, classes=CLASSES, axes=2)
COARSE = build_header(PLAN, initial_tensors(PLAN.shapes(), torch.Generator().manual_seed(0)))


def fleet(numbers: range) -> Iterator[LocalTraining]:
    """Devices with 30 to 60 samples to train on and 12 to validate on, made as they are asked."""
    for number in numbers:
        random = torch.Generator().manual_seed(number)
        count = 30 + number % 31
        parts = (samples(size, random) for size in (count, 12, 1))
        yield LocalTraining(COARSE, Splits(*parts), random)


def samples(count: int, random: torch.Generator) -> Samples:
    labels = torch.randint(CLASSES, (count,), generator=random)
    inputs = {
        name: torch.randn(count, HIDDEN, *GRID, generator=random) + labels.view(-1, 1, 1, 1) / 5
        for name in ("last", "penultimate")
    }
    inputs["pooled"] = torch.randn(count, HIDDEN, generator=random)
    return Samples(inputs, labels, torch.ones(count, dtype=torch.int64))


def one_by_one(devices: list[LocalTraining]) -> None:
    for device in devices:
        train_header(CLASSIFICATION, device.header, device.features, TRAINING, device.generator)


def together(devices: list[LocalTraining]) -> None:
    for _ in train_headers(CLASSIFICATION, devices, TRAINING, TOGETHER):
        pass


def seconds_of(work: Callable[[list[LocalTraining]], None], numbers: range) -> float:
    devices = list(fleet(numbers))
    start = time.perf_counter()
    work(devices)
    return time.perf_counter() - start


def in_turn(count: int) -> np.ndarray:
    """Seconds of both ways for each hundred devices, shape ``(hundreds, 2)``."""
    blocks = [range(i, min(i + TOGETHER, count)) for i in range(0, count, TOGETHER)]
    return np.array([[seconds_of(w, block) for w in (one_by_one, together)] for block in blocks])


def peak_mb() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    in_turn(20)  # not counted
    rows, times = {}, {}
    for count in (50, 500):
        times[count] = in_turn(count)
        slow, fast = times[count].sum(axis=0)
        rows[count] = {"one by one s": slow, "together s": fast, "peak MB": peak_mb()}
    hundreds = [range(i, i + TOGETHER) for i in range(0, 5000, TOGETHER)]
    fast = sum(seconds_of(together, hundred) for hundred in hundreds)
    slow = 10 * rows[500]["one by one s"]
    rows[5000] = {"one by one s": slow, "together s": fast, "peak MB": peak_mb()}
    for count, row in rows.items():
        row["ratio"] = row["one by one s"] / row["together s"]
        print(f"{count:>5} devices  " + "  ".join(f"{k} {v:9.2f}" for k, v in row.items()))
    ratios = np.sort(times[500][:, 0] / times[500][:, 1])
    write_benchmark(
        "batched_devices",
        float(rows[500]["ratio"]),
        (float(ratios[0]), float(ratios[-1])),
        {
            "by devices": {
                str(n): {k: round(float(v), 3) for k, v in row.items()} for n, row in rows.items()
            },
            "one by one of 5,000": "scaled from 500",
            "interval": "least and most over the five hundreds",
            "devices in a batch": TOGETHER,
            "parameters of a header": sum(p.numel() for p in COARSE.parameters()),
            "threads": torch.get_num_threads(),
        },
    )


if __name__ == "__main__":
    main()
