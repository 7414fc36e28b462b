"""The candidates δ(θ0, w, d) and their objectives: loss, energy, size (Eq. 4 and 10)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from acme_fleet.config.backbone import Backbone
from acme_fleet.config.devices import Precision
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.header import Header
from acme_fleet.cost.size import stored_model, stored_size
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import relative_errors
from acme_fleet.distillation.maps import mapped_heads, pooled_map, pooled_vectors
from acme_fleet.errors import FleetError
from acme_fleet.messages.header_plan import smallest_genotype
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import Evaluation, Task


@dataclass(frozen=True)
class Grid:
    """All candidates."""

    variants: tuple[Variant, ...]

    def __len__(self) -> int:
        return len(self.variants)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Each part of the identity, for all candidates."""
        rows = [vars(variant) for variant in self.variants]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    @property
    def work(self) -> Float[np.ndarray, " candidates"]:
        """w of Eq. 2 of each, see :class:`~acme_fleet.cost.variant.Variant`."""
        return np.array([variant.work for variant in self.variants], dtype=float)

    @property
    def precisions(self) -> list[Precision]:
        """The precision of each."""
        return [variant.precision for variant in self.variants]

    @property
    def depths(self) -> Int[np.ndarray, " candidates"]:
        """d of each."""
        return np.array([variant.depth for variant in self.variants], dtype=int)


def candidate_grid(settings: Backbone, reference: Classifier) -> Grid:
    """Every width at every hidden size, depth and precision, narrow and shallow first.

    The whole reference is always among them, at each precision: who cannot do better than
    quantisation alone should see it.

    Raises:
        FleetError: if a depth exceeds the reference's layers.
    """
    sizes = dimensions(reference.backbone.config)
    if max(settings.depths) > sizes.layers:
        raise FleetError(
            f"backbone.depths: {max(settings.depths)} is more than the reference's {sizes.layers} "
            f"layers"
        )
    shares = itertools.product(sorted(set(settings.widths)), sorted(set(settings.hidden)))
    depths = sorted(set(settings.depths))
    cuts = [Variant(w, depth, hidden) for w, hidden in shares for depth in depths]
    cuts = list(dict.fromkeys([*cuts, Variant.whole(sizes.layers)]))
    return Grid(tuple(cut.at(precision) for cut in cuts for precision in settings.precisions))


def candidate_sizes(
    elastic: ElasticClassifier, grid: Grid, settings: Header
) -> Int[np.ndarray, " candidates"]:
    """Exact bytes of the file that would ship, for each candidate.

    Each backbone is counted with the smallest header of the search space: what it must leave
    room for. Nothing is allocated.
    """
    genotype = smallest_genotype(settings.blocks, settings.cells, settings.channels)
    sizes = []
    for variant in grid.variants:
        arch = elastic.shape(variant)
        header = elastic.classifier.header_plan(genotype, arch.hidden)
        shapes = elastic.tensor_shapes(arch), header.shapes()
        sizes.append(stored_size(stored_model(*shapes, variant.precision)))
    return np.array(sizes, dtype=np.int64)


def chances(elastic: ElasticClassifier, settings: Fleet) -> dict[Variant, int]:
    """For each shape the devices that can have it, and none that is larger (METHOD 13).

    What nobody can have has no chance, and what a device would have for its limit alone has one.
    """
    grid = candidate_grid(settings.backbone, elastic.classifier)
    sizes = candidate_sizes(elastic, grid, settings.header)
    found = dict.fromkeys((variant.trained for variant in grid.variants), 0)
    for device in settings.devices:
        fitting = {
            variant.trained
            for variant, size in zip(grid.variants, sizes, strict=True)
            if variant.precision in device.precisions and size <= device.storage
        }
        for shape in fitting:
            found[shape] += not any(shape.is_within(other) for other in fitting - {shape})
    return found


@dataclass(frozen=True)
class Quality:
    """Quality of the candidates on the public validation data.

    Attributes:
        losses: the objective f^1: the task's mean loss with θ0^H or, without labels, the error of
            the pooled features, see :func:`feature_quality`.
        scores: with θ0^H, for people to read; nothing is chosen by them. None without labels.
        each: the loss of each sample, in one order for all candidates; NaN where it is not known.
        estimated: true where a loss is an estimate, see :mod:`acme_fleet.cloud.first_pass`; none
            has no estimates.
    """

    losses: Float[np.ndarray, " candidates"]
    scores: Float[np.ndarray, " candidates"] | None
    each: Float[np.ndarray, "candidates samples"] | None = None
    estimated: Bool[np.ndarray, " candidates"] | None = None


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
        f"the candidate {grid.variants[i]} is left out: its loss on the public validation data is "
        f"no finite number"
        for i in bad
    ]


def sent_quality(
    task: Task,
    elastic: ElasticClassifier,
    whole: ElasticClassifier,
    grid: Grid,
    validation: Samples,
    progress: Callable[[int, int], None],
    known: Samples | None = None,
) -> Quality:
    """Quality of each candidate as it would be sent.

    Args:
        task: judges on labelled data.
        elastic: what candidates are cut from.
        whole: what is sent in place of the whole of it: the reference, if features are learned.
        grid, progress: see :func:`candidate_quality`.
        validation: the public validation data, with or without labels.
        known: public training data, where candidates have learned the reference's features alone
            and differ in hidden size: each is judged through a linear map to them, fitted here.
    """
    if not validation.labelled:
        return feature_quality(elastic, whole, grid, validation, progress, known=known)
    heads = None if known is None else mapped_heads(elastic, whole, grid.variants, known)
    found = candidate_quality(task, elastic, grid, validation, progress, heads=heads, whole=whole)
    if whole is not elastic:
        whole.classifier.cpu()
    return found


@torch.no_grad()
def feature_quality(
    elastic: ElasticClassifier,
    teacher: ElasticClassifier,
    grid: Grid,
    validation: Samples,
    progress: Callable[[int, int], None],
    batch_size: int = 256,
    known: Samples | None = None,
) -> Quality:
    """Error of each candidate's pooled vectors against the teacher's, without labels.

    The squared error over the teacher's variance, channel by channel, as in distillation: 0 is the
    teacher itself, and 1 the error of its mean. The whole model is the teacher, at any precision.
    Arguments as for :func:`sent_quality`.
    """
    place = elastic.classifier.backbone.device
    teacher.classifier.to(place)
    calls = itertools.count(1)
    parts = [i for i, variant in enumerate(grid.variants) if variant != elastic.whole]
    batches = sum(-(-len(samples) // batch_size) for samples in (validation, known or []))
    total = (1 + len(parts)) * batches

    def pooled(model: ElasticClassifier, variant: Variant, samples: Samples) -> torch.Tensor:
        on_batch = lambda: progress(next(calls), total)  # noqa: E731
        return pooled_vectors(model, variant, samples, batch_size, on_batch)

    theirs, losses = pooled(teacher, teacher.whole, validation), np.zeros(len(grid))
    each = np.zeros((len(grid), len(validation)), dtype=np.float32)
    lesson = None if known is None else pooled(teacher, teacher.whole, known)
    for i in parts:
        variant = grid.variants[i]
        source = teacher if variant.trained == elastic.whole else elastic
        mine = pooled(source, variant, validation)
        if known is not None and lesson is not None and source is elastic:
            mine = pooled_map(source, variant, pooled(source, variant, known), lesson)(mine)
        errors = relative_errors(mine[:, None], theirs[:, None], None)
        losses[i], each[i] = float(errors.mean()), errors.mean(dim=1).cpu()
    teacher.classifier.cpu()
    return Quality(losses, None, each)


@torch.no_grad()
def candidate_quality(
    task: Task,
    elastic: ElasticClassifier,
    grid: Grid,
    validation: Samples,
    progress: Callable[[int, int], None],
    batch_size: int | None = None,
    heads: Sequence[nn.Linear] | None = None,
    whole: ElasticClassifier | None = None,
) -> Quality:
    """Loss and score of each candidate with θ0^H on labelled data.

    Args:
        task: judges the outputs.
        elastic: what candidates are cut from.
        grid: the candidates.
        validation: with labels.
        progress: called with the number of candidates and batches that are done, and of all.
        batch_size: samples in one pass; the task's own number without it.
        heads: a head for each candidate in place of θ0^H.
        whole: the whole model, where it is not cut from ``elastic``.
    """
    results = [Evaluation()] * len(grid)
    each = np.zeros((len(grid), len(validation)), dtype=np.float32)
    batches = list(by_length(validation, batch_size or task.at_once)[0])
    calls, total = itertools.count(1), len(grid) * len(batches)
    for candidate, variant in enumerate(grid.variants):
        model = whole if whole and variant.trained == elastic.whole else elastic
        model.classifier.to(elastic.classifier.backbone.device)
        arch, start = model.shape(variant), 0
        tensors = model.tensors(arch)
        for batch in batches:
            run = model.run(arch, batch.inputs, tensors)
            own = heads[candidate] if heads and model is elastic else None
            outputs = own(run.activations.pooled) if own else run.logits
            results[candidate] += task.evaluation(outputs, batch.labels)
            losses = task.loss(outputs, batch.labels.to(outputs.device), "none")
            rows = slice(start, start := start + len(batch))
            each[candidate, rows] = losses.reshape(len(batch), -1).sum(dim=1).cpu()
            progress(next(calls), total)
    return Quality(
        np.array([result.loss for result in results]),
        np.array([result.score for result in results]),
        each,
    )
