"""The linear part that a header starts from: as it was sent, or the task's probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.models.probe import fitted, replaced
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.training.evaluation import evaluate


def refit_if_better(
    task: Task,
    given: Callable[..., Tensor],
    classifier: Mapping[str, Tensor],
    train: Samples,
    validation: Samples,
) -> dict[str, Tensor] | None:
    """A linear classifier refitted, if a probe is better on samples that neither was fitted to.

    Args:
        task: judges; of one without a probe there is nothing better.
        given: a module that takes the samples' inputs and has seen none of them.
        classifier: its linear part.
        train, validation: features of a frozen backbone, see ``feature_samples``.

    Returns:
        ``weight`` and ``bias``, see :func:`~acme_fleet.models.probe.replaced`, or none.
    """
    if task.probe is None:
        return None
    probe = fitted(task.probe, classifier, train, validation)
    judges = (train, validation) if probe.crossed else (validation,)
    as_given = sum((evaluate(task, given, part) for part in judges), Evaluation())
    return replaced(probe, classifier, train) if probe.score > as_given.score else None
