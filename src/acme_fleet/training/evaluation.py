"""A module judged on samples, as its task judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import Evaluation, Task


@torch.no_grad()
def evaluate(
    task: Task,
    module: Callable[..., Tensor],
    samples: Samples,
    batch_size: int | None = None,
) -> Evaluation:
    """Evaluate on every sample once; ``module`` takes the samples' inputs by name.

    The task knows how many samples go together, unless ``batch_size`` says it.
    """
    batches, _ = by_length(samples, batch_size or task.at_once)
    each = (task.evaluation(module(**batch.inputs), batch.labels) for batch in batches)
    return sum(each, Evaluation())


def first_best(
    task: Task, modules: Sequence[Callable[..., Tensor]], samples: Samples
) -> tuple[int, Evaluation]:
    """The number of the best on these samples, of equal ones the first, and its evaluation."""
    best, found = 0, evaluate(task, modules[0], samples)
    for number, module in enumerate(modules[1:], 1):
        told = evaluate(task, module, samples)
        if told.better_than(found):
            best, found = number, told
    return best, found


@torch.no_grad()
def outputs(
    module: Callable[..., Tensor], samples: Samples, batch_size: int = 256
) -> Float[Tensor, "samples scores *positions"]:
    """A module's outputs for each sample, in the samples' order."""
    batches, order = by_length(samples, batch_size)
    found = torch.cat([module(**batch.inputs) for batch in batches])
    return found if order is None else found[order]


def answers(
    module: Callable[..., Tensor], samples: Samples, batch_size: int = 256
) -> Int[Tensor, " samples"]:
    """The number of the largest output for each sample, in the samples' order."""
    return outputs(module, samples, batch_size).argmax(dim=1)
