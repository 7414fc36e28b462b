"""The candidates δ(θ0, w, d) and their objectives: loss, energy, size (Eq. 4 and 10)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from acme_fleet.config.backbone import Backbone
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.header import Header
from acme_fleet.cost.size import file_size
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import relative_error
from acme_fleet.errors import FleetError
from acme_fleet.messages.header_plan import HeaderPlan, smallest_genotype
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier, feature_sizes
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.training.evaluation import evaluate


@dataclass(frozen=True)
class Grid:
    """All candidates (w, d)."""

    widths: Float[np.ndarray, " candidates"]
    depths: Int[np.ndarray, " candidates"]

    def __len__(self) -> int:
        return len(self.widths)


def candidate_grid(settings: Backbone, reference: Classifier) -> Grid:
    """Every width at every depth, narrow and shallow first.

    Raises:
        FleetError: if a depth exceeds the reference's layers.
    """
    layers = dimensions(reference.backbone.config).layers
    if max(settings.depths) > layers:
        raise FleetError(
            f"backbone.depths: {max(settings.depths)} is more than the reference's {layers} layers"
        )
    pairs = list(itertools.product(sorted(set(settings.widths)), sorted(set(settings.depths))))
    widths, depths = zip(*pairs, strict=True)
    return Grid(np.array(widths, dtype=float), np.array(depths, dtype=int))


def candidate_sizes(
    elastic: ElasticClassifier, grid: Grid, settings: Header
) -> Int[np.ndarray, " candidates"]:
    """Exact bytes of the file that would ship, for each candidate.

    Each backbone is counted with the smallest header of the search space: what it must leave
    room for. Nothing is allocated.
    """
    header = HeaderPlan(
        genotype=smallest_genotype(settings.blocks, settings.cells, settings.channels),
        classes=elastic.classifier.head.out_features,
        **feature_sizes(elastic.classifier.backbone.config)._asdict(),
    )
    header_shapes = {f"header.{name}": shape for name, shape in header.shapes().items()}
    sizes = []
    for width, depth in zip(grid.widths, grid.depths, strict=True):
        shapes = elastic.tensor_shapes(elastic.shape(float(width), int(depth)))
        backbone_shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
        sizes.append(file_size(backbone_shapes | header_shapes))
    return np.array(sizes, dtype=np.int64)


@dataclass(frozen=True)
class Quality:
    """Quality of the candidates on the public validation data.

    Attributes:
        losses: the objective f^1: the task's mean loss with θ0^H or, without labels, the error of
            the pooled features, see :func:`feature_quality`.
        scores: with θ0^H, for people to read; nothing is chosen by them. None without labels.
    """

    losses: Float[np.ndarray, " candidates"]
    scores: Float[np.ndarray, " candidates"] | None


def without_loss(grid: Grid, quality: Quality, settings: Fleet) -> list[str]:
    """Candidates that nothing can be said of, in words: their loss is no finite number.

    Raises:
        FleetError: if that is all of them.
    """
    bad = np.flatnonzero(~np.isfinite(quality.losses))
    if len(bad) == len(grid):
        reference, distillation = settings.reference.training, settings.backbone.distillation
        source = settings.reference.checkpoint
        before = "the reference" if source is None else f"the checkpoint {source}"
        raise FleetError(
            f"none of the {len(grid)} candidates has a finite loss on the public validation data: "
            f"{before} or its distillation diverged; set lower learning rates in "
            f"reference.training ({reference.learning_rate:g}) and backbone.distillation.training "
            f"({distillation.training.learning_rate:g}), and start anew"
        )
    return [
        f"the candidate of width {grid.widths[i]:g} and depth {grid.depths[i]} is left out: its "
        f"loss on the public validation data is no finite number"
        for i in bad
    ]


def sent_quality(
    task: Task,
    elastic: ElasticClassifier,
    whole: ElasticClassifier,
    grid: Grid,
    validation: Samples,
    progress: Callable[[int, int], None],
) -> Quality:
    """Quality of each candidate as it would be sent.

    Args:
        task: judges on labelled data.
        elastic: what candidates are cut from.
        whole: what is sent in place of the whole of it: the reference, if features are learned.
        grid, progress: see :func:`candidate_quality`.
        validation: the public validation data, with or without labels.
    """
    if not validation.labelled:
        return feature_quality(elastic, whole, grid, validation, progress)
    found = candidate_quality(task, elastic, grid, validation, progress)
    at = _is_whole(grid, elastic)
    if whole is not elastic and at.any():
        result = evaluate(task, whole.classifier.cpu(), validation)
        assert found.scores is not None
        found.losses[at], found.scores[at] = result.loss, result.score
    return found


def _is_whole(grid: Grid, elastic: ElasticClassifier) -> np.ndarray:
    """True for the candidate that is the whole model, shape ``(candidates,)``."""
    return (grid.widths == 1.0) & (grid.depths == elastic.sizes.layers)


@torch.no_grad()
def feature_quality(
    elastic: ElasticClassifier,
    teacher: ElasticClassifier,
    grid: Grid,
    validation: Samples,
    progress: Callable[[int, int], None],
    batch_size: int = 256,
) -> Quality:
    """Error of each candidate's pooled vectors against the teacher's, without labels.

    The squared error over the teacher's variance, channel by channel, as in distillation: 0 is the
    teacher itself, and 1 the error of its mean. The whole model is the teacher. Arguments as for
    :func:`candidate_quality`.
    """
    place = elastic.classifier.head.weight.device
    teacher.classifier.to(place)
    calls = itertools.count(1)
    whole, batches = _is_whole(grid, elastic), -(-len(validation) // batch_size)
    total = (1 + int((~whole).sum())) * batches

    def pooled(model: ElasticClassifier, width: float, depth: int) -> torch.Tensor:
        rows = []
        for batch in by_length(validation, batch_size)[0]:
            run = model.run(model.shape(width, depth), batch.inputs)
            rows.append(run.activations.pooled)
            progress(next(calls), total)
        return torch.cat(rows)[:, None]

    theirs, losses = pooled(teacher, 1.0, teacher.sizes.layers), np.zeros(len(grid))
    for i in np.flatnonzero(~whole):
        mine = pooled(elastic, float(grid.widths[i]), int(grid.depths[i]))
        losses[i] = float(relative_error(mine, theirs, None))
    teacher.classifier.cpu()
    return Quality(losses, None)


@torch.no_grad()
def candidate_quality(
    task: Task,
    elastic: ElasticClassifier,
    grid: Grid,
    validation: Samples,
    progress: Callable[[int, int], None],
    batch_size: int = 256,
) -> Quality:
    """Loss and score of each candidate with θ0^H on labelled data, in one pass over them."""
    results = [Evaluation()] * len(grid)
    shapes = [
        elastic.shape(float(w), int(d)) for w, d in zip(grid.widths, grid.depths, strict=True)
    ]
    done, total = 0, len(grid) * -(-len(validation) // batch_size)
    batches, _ = by_length(validation, batch_size)
    for batch in batches:
        for candidate, shape in enumerate(shapes):
            logits = elastic.run(shape, batch.inputs).logits
            results[candidate] += task.evaluation(logits, batch.labels)
            done += 1
            progress(done, total)
    return Quality(
        np.array([result.loss for result in results]),
        np.array([result.score for result in results]),
    )
