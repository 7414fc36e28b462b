"""Loss and accuracy of a classifier on samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.data.samples import Samples
from acme_fleet.models.padding import by_length


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and share of correct answers over all samples."""

    loss: float
    accuracy: float

    @property
    def sound(self) -> bool:
        """True if the loss is a number; otherwise the accuracy means nothing."""
        return math.isfinite(self.loss)

    def better_than(self, other: Evaluation) -> bool:
        """More accurate, or equally accurate with a smaller loss; sound before all."""
        if not (self.sound and other.sound):
            return self.sound
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@torch.no_grad()
def evaluate(module: Callable[..., Tensor], samples: Samples, batch_size: int = 256) -> Evaluation:
    """Evaluate on every sample once; ``module`` takes the samples' inputs by name."""
    loss, correct = 0.0, 0
    batches, _ = by_length(samples, batch_size)
    for batch in batches:
        logits = module(**batch.inputs)
        labels = batch.labels.to(logits.device)
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(dim=1) == labels).sum())
    return Evaluation(loss=loss / len(samples), accuracy=correct / len(samples))
