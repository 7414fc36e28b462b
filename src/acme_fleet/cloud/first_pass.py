"""A large grid: every candidate is judged on a few samples, the front's neighbourhood on all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from acme_fleet.cloud.objectives import Grid, Quality
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.samples import Samples

LARGE = 100
"""Candidates of the largest grid that is judged in one pass."""
_SURE = 3.0
"""Standard errors by which a loss must be larger to count as larger."""

Judge = Callable[[Grid, Samples], Quality]
"""Quality of some candidates on some samples."""
Costs = Shaped[np.ndarray, "candidates costs"]


def costs_of(grid: Grid, sizes: Int[np.ndarray, " candidates"], settings: Fleet) -> Costs:
    """Sizes, and all that the energy of any device grows with: w·d and, where it has a ΔD, d."""
    costs = [sizes, grid.work * grid.depths]
    if any(device.energy.latency_per_depth_s for device in settings.devices):
        costs.append(grid.depths)
    return np.column_stack(costs)


def neighbourhood(
    each: Float[np.ndarray, "candidates samples"], costs: Costs
) -> Bool[np.ndarray, " candidates"]:
    """Candidates that may be on the front, as a mask.

    All others have a larger loss than a candidate of no larger costs, by three standard errors of
    the difference on the same samples. A loss that is no finite number tells nothing: its candidate
    is kept.

    Args:
        each: losses of each sample.
        costs: numbers with which energy and size grow.
    """
    kept = np.ones(len(each), dtype=bool)
    for candidate, losses in enumerate(each):
        rivals = each[(costs <= costs[candidate]).all(axis=1)]
        with np.errstate(invalid="ignore"):
            more = losses - rivals
            error = more.std(axis=1, ddof=1) / np.sqrt(more.shape[1])
            kept[candidate] = not (more.mean(axis=1) > _SURE * error).any()
    return kept


def judged(
    judge: Judge,
    grid: Grid,
    validation: Samples,
    costs: Costs,
    few: int,
    generator: torch.Generator,
) -> Quality:
    """Quality of all candidates; of a large grid that of most is an estimate.

    An estimate is the loss of the best candidate of no larger costs that was judged on all samples,
    and the difference between the two on the few. So no candidate is on a front, or chosen, by an
    estimate.

    Args:
        judge: gives losses of each sample too.
        grid: the candidates.
        validation: the public validation data.
        costs: of each candidate, see :func:`neighbourhood`.
        few: samples of the first pass; 0 leaves it out.
        generator: draws them.
    """
    if len(grid) <= LARGE or not 1 < few < len(validation):
        return judge(grid, validation)
    first = judge(grid, validation[torch.randperm(len(validation), generator=generator)[:few]])
    losses, measured = np.full(len(grid), np.nan), np.zeros(len(grid), dtype=bool)
    scores = None if first.scores is None else np.full(len(grid), np.nan)
    assert first.each is not None
    todo = neighbourhood(first.each, costs)
    nearest = np.full(len(grid), -1)
    while todo.any():
        part = judge(Grid(tuple(grid.variants[i] for i in np.flatnonzero(todo))), validation)
        losses[todo], measured = part.losses, measured | todo
        if scores is not None:
            scores[todo] = part.scores
        nearest = _nearest(first.losses, costs, measured & np.isfinite(losses))
        todo = ~measured & (nearest < 0)
    at = np.flatnonzero(~measured)
    to = nearest[at]
    losses[at] = losses[to] + first.losses[at] - first.losses[to]
    if scores is not None and first.scores is not None:
        scores[at] = np.clip(scores[to] + first.scores[at] - first.scores[to], 0, 1)
    return Quality(losses, scores, estimated=~measured)


def _nearest(
    losses: Float[np.ndarray, " candidates"], costs: Costs, known: Bool[np.ndarray, " candidates"]
) -> Shaped[np.ndarray, " candidates"]:
    """The best known candidate with a smaller loss and no larger costs, for each; -1 for none."""
    nearest = np.full(len(losses), -1)
    for candidate, loss in enumerate(losses):
        rivals = known & (costs <= costs[candidate]).all(axis=1) & (losses < loss)
        if rivals.any():
            nearest[candidate] = np.flatnonzero(rivals)[losses[rivals].argmin()]
    return nearest
