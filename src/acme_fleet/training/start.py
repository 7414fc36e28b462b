"""The linear part that a header starts from: as it was sent, changed, or the task's probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.tasks.base import Task
from acme_fleet.training.evaluation import outputs


@torch.no_grad()
def changed(
    task: Task, given: Callable[..., Tensor], classifier: Mapping[str, Tensor], train: Samples
) -> Iterator[dict[str, Tensor]]:
    """A header's linear part as samples would change it, a little and then more.

    Args:
        task: one that has no :attr:`~acme_fleet.tasks.base.Task.changes` changes nothing.
        given: the header; it takes the samples' inputs.
        classifier: ``weight`` and ``bias`` of its linear part, on the pooled vector.
        train: features of a frozen backbone, see ``feature_samples``.
    """
    if task.changes is None:
        return
    logits = outputs(given, train, task.at_once).double().numpy()
    read = train.inputs["pooled"].double().numpy(), train.labels.numpy()
    for change in task.changes(read, logits):
        yield {
            name: classifier[name] + torch.from_numpy(values).float()
            for name, values in change._asdict().items()
        }
