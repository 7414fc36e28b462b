"""The time that a run will take on this machine: its planned work, at a speed measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.inspection.plan import Examined
from acme_fleet.inspection.workload import TRAINED, expected_work
from acme_fleet.models.features import Classifier
from acme_fleet.models.padding import without_padding
from acme_fleet.seeding import threads
from acme_fleet.training.precision import Numbers, has_bfloat16, mixed_precision

_ENOUGH_S, _TRIES = 0.3, 2
_SLOWER = {"header ": 3.0, "round ": 3.0, "fine-tuning": 3.0, "ten lines": 6.0}
"""Kinds of stages whose operations take longer than a backbone's, and times how long: the middle of
1.5 to 4, and of 3 to 10, in runs on photos, digits, texts and chats."""
_DEVICE_S = 1.0  # to measure and write a device's model, at least


@dataclass(frozen=True)
class Duration:
    """Seconds of a whole run, about; ``needless_s`` of them may turn out not to be needed."""

    seconds: float
    needless_s: float


def expected_duration(
    fleet: Fleet, seen: Examined, clock: Callable[[], float] = time.perf_counter
) -> Duration | None:
    """Time some steps of the reference's training, and divide the plan's work by their speed.

    The machine counts as busy as it is now. None where the cloud trains on a GPU, which is not
    asked for a guess.

    Args:
        fleet: with its settings.
        seen: its data, reference and plan.
        clock: tells seconds.
    """
    if fleet.accelerator != "cpu":
        return None
    with threads(fleet.threads):
        speed = _speed(fleet, _with_weights(fleet, seen), seen, clock)
    total = needless = 0.0
    for kind, expected in expected_work(fleet, seen.plan).items():
        slower = next((by for name, by in _SLOWER.items() if kind.startswith(name)), 1.0)
        total += expected.work * slower / speed
        needless += expected.perhaps * slower / speed
    return Duration(total + _DEVICE_S * len(fleet.devices), needless)


def _with_weights(fleet: Fleet, seen: Examined) -> Classifier:
    if not next(seen.reference.parameters()).is_meta:
        return seen.reference
    world = seen.world
    return untrained_reference(fleet, world.public, world.classes, world.vocabulary)


def _speed(fleet: Fleet, model: Classifier, seen: Examined, clock: Callable[[], float]) -> float:
    """Operations a second of training the reference, see :func:`expected_work`."""
    samples = seen.world.public.train
    kinds: tuple[Numbers, ...] = ("float32",)
    if fleet.compute != "float32" and has_bfloat16(model.backbone.device):
        kinds = ("bfloat16",) if fleet.compute == "bfloat16" else ("float32", "bfloat16")
    size, most = 1, min(len(samples), fleet.backbone.distillation.training.batch_size)

    def best(tries: int) -> float:
        batch = without_padding(samples[:size])
        return min(_step(model, batch, one, clock) for one in kinds for _ in range(tries))

    while (taken := best(1)) < _ENOUGH_S and size < most:
        size = min(most, 2 * size)
    operations = TRAINED * seen.plan.reference_bytes / 4 * size
    return operations / max(min(taken, best(_TRIES)), 1e-9)


def _step(model: Classifier, batch: Samples, numbers: Numbers, clock: Callable[[], float]) -> float:
    """Seconds of a forward and a backward pass."""
    started = clock()
    with mixed_precision(model.backbone.device, numbers):
        loss = model(**batch.inputs).square().mean()
    loss.backward()
    model.zero_grad()
    return clock() - started
