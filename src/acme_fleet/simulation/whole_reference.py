"""The whole reference on the devices' own test sets: what the small models are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.data.partition import World
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.models.backbone.precision import pack
from acme_fleet.models.features import Classifier, LanguageModel
from acme_fleet.models.storage import backbone_from, config_document
from acme_fleet.profiling.measure import measure_latency
from acme_fleet.runs.sealed import STRICT
from acme_fleet.runs.summary import Rival
from acme_fleet.tasks.base import Task
from acme_fleet.training.answers import answered
from acme_fleet.training.evaluation import evaluate

_PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "int4")
Done = Callable[[int, int], None]
"""Called with the parts of a work that are done, and all."""


@dataclass(frozen=True)
class WholeResult:
    """The whole reference: its score on each device's full test set, and its latency.

    Attributes:
        scores: by device; empty where it has no classifier for these classes.
        latency_s: of one input in PyTorch, as :func:`measure_latency` measures a device's model.
        writing: of a language model, by precision and by device.
    """

    __pydantic_config__ = STRICT

    scores: dict[str, float]
    latency_s: float
    writing: dict[Precision, dict[str, Rival]] = field(default_factory=dict)


def measure_whole(
    task: Task, reference: Classifier, world: World, progress: Done, *, answers: bool
) -> WholeResult:
    """Measure the reference on the fleet's own splits.

    It is told which classes a device has training samples of, and answers with no other: as a
    device's model, which learned from them. A language model is measured rounded too.

    Args:
        task: judges.
        reference: after its training on the public data.
        world: everybody's samples.
        progress: told of devices, at each precision.
        answers: false where its classifier was never fitted.
    """
    reference = reference.eval()
    one = next(iter(world.private.values())).test[:1].inputs
    latency_s = measure_latency(reference, one)
    if task.per_token:
        writing = _measure_writing(task, reference, world, progress)
        scores = {name: found.accuracy for name, found in writing["float32"].items()}
        return WholeResult(scores, latency_s, writing)
    scores = {}
    for done, (name, own) in enumerate(world.private.items() if answers else (), 1):
        scores[name] = evaluate(task, among(reference, own), own.test).score
        progress(done, len(world.private))
    return WholeResult(scores, latency_s)


def _measure_writing(
    task: Task, reference: Classifier, world: World, progress: Done
) -> dict[Precision, dict[str, Rival]]:
    """A language model at each precision, without a header."""
    backbone, every = reference.backbone, len(_PRECISIONS) * len(world.private)
    found: dict[Precision, dict[str, Rival]] = {}
    for number, precision in enumerate(_PRECISIONS):
        config = {**config_document(backbone), "precision": precision}
        rounded = backbone_from(config, pack(backbone.state_dict(), precision))
        model, size_bytes = LanguageModel(rounded), file_size(shapes_of(backbone), precision)
        found[precision] = {}
        for done, (name, own) in enumerate(world.private.items(), 1):
            found[precision][name] = rival_of(task, model, own.test, size_bytes)
            progress(number * len(world.private) + done, every)
    return found


def rival_of(task: Task, module: Callable[..., Tensor], test: Samples, size_bytes: int) -> Rival:
    """A rival of so many bytes, on a device's test data as the module takes them."""
    if not task.per_token:
        return Rival(evaluate(task, module, test).score, size_bytes)
    judged = answered(task, module, test)
    return Rival(judged.found.score, size_bytes, judged.loss, judged.exact)


def among(reference: Classifier, own: Splits) -> Callable[..., Tensor]:
    """The reference with no other answer than the classes of a device's training samples."""
    absent = torch.full((reference.head.out_features,), True)
    absent[own.train.labels.unique()] = False

    def answer(**inputs: Tensor) -> Tensor:
        return reference(**inputs).masked_fill(absent, -torch.inf)

    return answer
