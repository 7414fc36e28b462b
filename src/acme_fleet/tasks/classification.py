"""Classification: one of several classes for each sample."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.config.backbone import LogitsLoss
from acme_fleet.tasks.base import ABSENT, Reduction, Task, logits_distance
from acme_fleet.tasks.probe import fit_changes, fit_probe


class Classification(Task):
    """Cross-entropy of the logits, judged by the share of samples whose class is answered."""

    metric = "accuracy"
    whole_hits = True
    probe = staticmethod(fit_probe)
    changes = staticmethod(fit_changes)

    def __init__(self, smoothing: float = 0.0) -> None:
        """``smoothing`` is the share of each label that is spread over all classes."""
        self._smoothing = smoothing

    def smoothed(self, share: float) -> Classification:
        """See :class:`~acme_fleet.tasks.base.Task`."""
        return Classification(share)

    def loss(
        self,
        outputs: Float[Tensor, "batch classes *positions"],
        labels: Int[Tensor, " batch *positions"],
        reduction: Reduction = "mean",
    ) -> Float[Tensor, ...]:
        """Cross-entropy."""
        return F.cross_entropy(
            outputs,
            labels,
            reduction=reduction,
            ignore_index=ABSENT,
            label_smoothing=self._smoothing,
        )

    def hits(
        self,
        outputs: Float[Tensor, "batch classes *positions"],
        labels: Int[Tensor, " batch *positions"],
    ) -> Bool[Tensor, " batch *positions"]:
        """True where the largest logit is the label's."""
        return outputs.argmax(dim=1) == labels

    def imitation(
        self,
        student: Float[Tensor, "batch classes *positions"],
        teacher: Float[Tensor, "batch classes *positions"],
        kind: LogitsLoss,
    ) -> Float[Tensor, ""]:
        """Eq. 9's mean squared error, or the cross-entropy −Σ softmax(y)·log softmax(ŷ)."""
        return logits_distance(student, teacher, kind)

    def outputs(self, names: Sequence[str]) -> int:
        """A logit for each class."""
        return len(names)


CLASSIFICATION = Classification()
"""The task of most fleets, and of all that is pre-trained, shipped or researched here."""
