"""An artifact against PyTorch: logits and answers on the same inputs, before it is put in place."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acme_fleet.config.devices import Precision
from acme_fleet.deploy.base import Inputs, Logits
from acme_fleet.deploy.samples import Evidence, Judged
from acme_fleet.report.intervals import wilson
from acme_fleet_runtime.manifest import Accuracy, Latency, Verification
from acme_fleet_runtime.texts import LEAST_TOKENS

TOLERANCES: dict[Precision, float] = {
    "float32": 1e-3,
    "float16": 1e-3,
    "int4": 1e-3,
    # Inputs of layers are rounded there; where PyTorch has 0.49999, a runtime may have 0.5.
    "int8": 5e-2,
}
"""The largest difference of logits, as a share of their spread."""
_LARGEST_LOSS = 0.005  # of accuracy, or one sample where that is more
_BATCH, _ALONE = 32, 8
_LEAST_RUNS, _SECONDS = 10, 0.5


@dataclass(frozen=True)
class Verified:
    """The results.

    Attributes:
        verification: of logits.
        accuracy: of labelled data.
        refusals: why the artifact should not be used; empty if it should.
    """

    verification: Verification
    accuracy: tuple[Accuracy, ...]
    refusals: tuple[str, ...]


def verify(
    artifact: Logits,
    pytorch: Logits,
    evidence: Evidence,
    precision: Precision,
    *,
    forced: bool,
    shipped: Logits | None = None,
) -> Verified:
    """Compare an artifact with PyTorch.

    Its logits must be PyTorch's, in a batch as alone, with padding as without. On validation data
    its accuracy must be the device's model's too. Test data decide nothing.

    Args:
        artifact, pytorch: logits of a batch, by the same arithmetic.
        evidence: the inputs.
        precision: of the weights, which decides the tolerance.
        forced: goes into the record.
        shipped: logits of the device's model, where ``pytorch`` rounds in another way.
    """
    parts = {evidence.data: evidence.first}
    if evidence.test is not None:
        parts["test"] = evidence.test
    judge = pytorch if shipped is None else shipped
    found = {name: (_all(artifact, part), _all(judge, part)) for name, part in parts.items()}
    ours, expected = found[evidence.data]
    theirs = expected if shipped is None else _all(pytorch, evidence.first)
    spread = _spread(theirs)
    difference = _difference(ours, theirs, spread)
    alone = _difference(_alone(artifact, evidence.first), ours[:_ALONE], spread)
    padded = _difference(_tight(artifact, evidence.first), ours, spread)
    tolerance = TOLERANCES[precision]
    refusals = [
        f"{what} by {value:.2g} of their spread, at most {tolerance:g} is accepted"
        for what, value in (
            ("logits differ from PyTorch's", difference),
            ("logits of one input differ from those in a batch", alone),
            ("logits with padding differ from those with less", padded),
        )
        if not value <= tolerance  # NaN too
    ]
    accuracy = []
    for name, part in parts.items():
        if part.labels is None or (name != "validation" and name != "test"):
            continue
        right = [logits.argmax(axis=1) == part.labels for logits in found[name]]
        shares = [float(x.mean()) for x in right]
        interval = wilson(shares[0], len(part))
        accuracy.append(Accuracy(name, len(part), shares[0], shares[1], interval))
        lost = int(right[1].sum()) - int(right[0].sum())
        if name == "validation" and lost > max(_LARGEST_LOSS * len(part), 1):
            refusals.append(
                f"accuracy is {shares[0]:.4f} and PyTorch's {shares[1]:.4f} on {len(part)} "
                f"validation samples"
            )
    record = Verification(
        data=evidence.data,
        samples=len(evidence.first),
        largest_difference=told(max(difference, alone, padded)),
        tolerance=tolerance,
        same_class=float((ours.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        forced=forced and bool(refusals),
    )
    return Verified(record, tuple(accuracy), tuple(refusals))


def told(difference: float) -> float:
    """A number that JSON has."""
    return difference if math.isfinite(difference) else 1e9


def _batches(inputs: Inputs, size: int) -> Iterator[Inputs]:
    count = len(next(iter(inputs.values())))
    for start in range(0, count, size):
        yield {name: values[start : start + size] for name, values in inputs.items()}


def _all(run: Logits, part: Judged) -> np.ndarray:
    return np.concatenate([run(batch) for batch in _batches(part.inputs, _BATCH)])


def _alone(run: Logits, part: Judged) -> np.ndarray:
    """Logits of the first inputs, one by one; texts without any padding."""
    first = {name: values[:_ALONE] for name, values in part.inputs.items()}
    return np.concatenate([run(_cut(one)) for one in _batches(first, 1)])


def _cut(batch: Inputs) -> Inputs:
    """Texts without the padding that all of them have."""
    mask = batch.get("attention_mask")
    if mask is None:
        return batch
    used = max(LEAST_TOKENS, int(mask.sum(axis=1).max()))
    return {name: values[:, :used] for name, values in batch.items()}


def _tight(run: Logits, part: Judged) -> np.ndarray:
    """Logits of texts in batches of like length, each cut to its longest; of images as they are."""
    mask = part.inputs.get("attention_mask")
    if mask is None:
        return _all(run, part)
    order = mask.sum(axis=1).argsort(kind="stable")
    ordered = {name: values[order] for name, values in part.inputs.items()}
    rows = np.concatenate([run(_cut(batch)) for batch in _batches(ordered, _BATCH)])
    return rows[order.argsort()]


def _spread(logits: np.ndarray) -> float:
    """The mean over inputs of the largest logit less the smallest."""
    return max(float((logits.max(axis=1) - logits.min(axis=1)).mean()), 1e-6)


def _difference(ours: np.ndarray, theirs: np.ndarray, spread: float) -> float:
    return float(np.abs(ours - theirs).max()) / spread


def latency(artifact: Logits, pytorch: Logits, part: Judged, threads: int) -> Latency:
    """Median milliseconds of one input, measured by turns.

    Args:
        artifact, pytorch: logits of a batch, on ``threads`` threads.
        part: the first input is taken, a text without padding.
        threads: goes into the record.
    """
    one = _cut(next(_batches(part.inputs, 1)))
    runs: dict[str, list[float]] = {"artifact": [], "pytorch": []}
    end = time.perf_counter() + _SECONDS
    while len(runs["pytorch"]) < _LEAST_RUNS or time.perf_counter() < end:
        for name, run in (("artifact", artifact), ("pytorch", pytorch)):
            start = time.perf_counter()
            run(one)
            runs[name].append(1e3 * (time.perf_counter() - start))
    ours, theirs = (round(float(np.median(each)), 4) for each in runs.values())
    return Latency(ours, theirs, 1, threads, machine())


def machine() -> str:
    """The processor of this machine, in words."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {platform.system()}"
    return f"{platform.processor() or platform.machine()}, {platform.system()}"
