"""The linear part that a header starts from: as it was sent, changed, or the task's probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import Task


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
    batches, back = by_length(train, task.at_once)
    logits = torch.cat([given(**batch.inputs) for batch in batches])
    logits = logits if back is None else logits[back]
    read = train.inputs["pooled"].double().numpy(), train.labels.numpy()
    for change in task.changes(read, logits.double().numpy()):
        yield {
            name: classifier[name] + torch.from_numpy(values).float()
            for name, values in change._asdict().items()
        }
