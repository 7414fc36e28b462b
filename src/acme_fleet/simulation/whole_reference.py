"""The whole reference on the devices' own test sets: what the small models are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from acme_fleet.data.partition import World
from acme_fleet.data.samples import Splits
from acme_fleet.models.features import Classifier
from acme_fleet.profiling.measure import measure_latency
from acme_fleet.runs.sealed import STRICT
from acme_fleet.tasks.base import Task
from acme_fleet.training.evaluation import evaluate


@dataclass(frozen=True)
class WholeResult:
    """The whole reference: its score on each device's full test set, and its latency.

    Attributes:
        scores: by device; empty where it has no classifier for these classes.
        latency_s: of one input in PyTorch, as :func:`measure_latency` measures a device's model.
    """

    __pydantic_config__ = STRICT

    scores: dict[str, float]
    latency_s: float


def measure_whole(
    task: Task,
    reference: Classifier,
    world: World,
    progress: Callable[[int, int], None],
    *,
    answers: bool,
) -> WholeResult:
    """Measure the reference on the fleet's own splits.

    It is told which classes a device has training samples of, and answers with no other: as a
    device's model, which learned from them.

    Args:
        task: judges.
        reference: after its training on the public data.
        world: everybody's samples.
        progress: called with the devices that are done, and all.
        answers: false where its classifier was never fitted.
    """
    reference = reference.eval()
    scores = {}
    for done, (name, own) in enumerate(world.private.items() if answers else (), 1):
        judge = reference if task.per_token else among(reference, own)
        scores[name] = evaluate(task, judge, own.test).score
        progress(done, len(world.private))
    one = next(iter(world.private.values())).test[:1].inputs
    return WholeResult(scores, measure_latency(reference, one))


def among(reference: Classifier, own: Splits) -> Callable[..., Tensor]:
    """The reference with no other answer than the classes of a device's training samples."""
    absent = torch.full((reference.head.out_features,), True)
    absent[own.train.labels.unique()] = False

    def answer(**inputs: Tensor) -> Tensor:
        return reference(**inputs).masked_fill(absent, -torch.inf)

    return answer
