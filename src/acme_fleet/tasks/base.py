"""The interface of a task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.config.backbone import LogitsLoss
from acme_fleet.config.data import ABSENT
from acme_fleet.config.fleet import Fleet
from acme_fleet.tasks.probe import Linear, Probe, Read, Scaling

Reduction = Literal["mean", "sum", "none"]


def logits_distance(
    student: Float[Tensor, "batch scores *positions"],
    teacher: Float[Tensor, "batch scores *positions"],
    kind: LogitsLoss,
) -> Float[Tensor, ""]:
    """Eq. 9's mean squared error, or the cross-entropy −Σ softmax(y)·log softmax(ŷ)."""
    if kind == "mse":
        return F.mse_loss(student, teacher)
    return F.cross_entropy(student, teacher.softmax(dim=1))


@dataclass(frozen=True)
class Evaluation:
    """Sums over the answers that were judged; the evaluations of several batches add up.

    Attributes:
        losses: sum of the losses.
        hits: sum of the points, between 0 and 1 for each answer.
        count: answers: one for each sample, or for each token where texts are generated.
        by_loss: compare by the loss, and not by the score.
    """

    losses: float = 0.0
    hits: float = 0.0
    count: int = 0
    by_loss: bool = False

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(
            self.losses + other.losses,
            self.hits + other.hits,
            self.count + other.count,
            self.by_loss or other.by_loss,
        )

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.losses / self.count

    @property
    def score(self) -> float:
        """Share of the points that could be had, in [0, 1]: the accuracy of a classification."""
        return self.hits / self.count

    @property
    def reward(self) -> float:
        """The number in [0, 1] that a search maximises: the score or, by the loss l, e⁻ˡ."""
        return math.exp(-self.loss) if self.by_loss else self.score

    @property
    def sound(self) -> bool:
        """True if the loss is a number; otherwise the score means nothing."""
        return math.isfinite(self.losses)

    def better_than(self, other: Evaluation) -> bool:
        """A higher score, or an equal one with a smaller loss; sound before all."""
        if not (self.sound and other.sound):
            return self.sound
        if self.by_loss:
            return self.loss < other.loss
        return (self.score, -self.loss) > (other.score, -other.loss)

    def scores_at_least(self, other: Evaluation) -> bool:
        """Sound, and a score that is not lower, whatever the loss; or by the loss alone."""
        if self.by_loss:
            return self.sound and self.loss <= other.loss
        return self.sound and self.score >= other.score


@runtime_checkable
class Fit(Protocol):
    """Fits a linear head to features without a step of training."""

    def __call__(
        self,
        train: Read,
        validation: Read,
        classes: int,
        scaling: Scaling | None = None,
    ) -> Probe:
        """See :func:`acme_fleet.tasks.probe.fit_probe`."""
        ...


class Changes(Protocol):
    """Fits what a linear head may add to given outputs."""

    def __call__(self, train: Read, given: Float[np.ndarray, "samples scores"]) -> Sequence[Linear]:
        """See :func:`acme_fleet.tasks.probe.fit_changes`."""
        ...


class Task(ABC):
    """A thing that can be learned, and how it is judged.

    Outputs and labels have the axes of PyTorch's cross-entropy: outputs ``(batch, scores,
    *positions)`` and labels ``(batch, *positions)``. Positions are the tokens of a text whose every
    token has a label, or the samples of a device where many devices train together; a classifier's
    outputs have none. Outputs and labels are on one device. A label :data:`ABSENT` is no label.

    Attributes:
        metric: the name of the score.
        whole_hits: True if each sample is right or wrong: the score of n samples is then a whole
            number of them over n, and a report of another score is refused.
        probe: fits a linear head to frozen features; a task without one starts from what training
            finds, and its runs have no regression as a rival.
        changes: fits what a linear head may add to a header's outputs.
        at_once: samples that are evaluated together.
        per_token: True if each token of a text has an answer, which the model's own language head
            gives; a header then changes the token's last hidden state.
    """

    metric: ClassVar[str]
    whole_hits: ClassVar[bool] = False
    probe: ClassVar[Fit | None] = None
    changes: ClassVar[Changes | None] = None
    at_once: ClassVar[int] = 256
    per_token: ClassVar[bool] = False

    def check(self, settings: Fleet) -> None:  # noqa: B027
        """Refuse settings that this task cannot follow; by default there are none.

        Raises:
            FleetError: naming the first of them.
        """

    def through(self, head: Float[Tensor, "scores hidden"]) -> Task:
        """The task on last hidden states, which go through this frozen language head.

        One whose models have no language head is itself.
        """
        return self

    @abstractmethod
    def loss(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
        reduction: Reduction = "mean",
    ) -> Float[Tensor, ...]:
        """Loss of a batch: mean or sum over its labels, or of each in the shape of ``labels``.

        The sum must be one over samples, each a function of its own outputs and label alone.
        """

    def smoothed(self, share: float) -> Task:
        """The task with a ``share`` of each label spread over all; one without labels is itself."""
        return self

    @abstractmethod
    def hits(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
    ) -> Shaped[Tensor, " batch *positions"]:
        """Points of each answer: true or false, or a number between 0 and 1."""

    @abstractmethod
    def imitation(
        self,
        student: Float[Tensor, "batch scores *positions"],
        teacher: Float[Tensor, "batch scores *positions"],
        kind: LogitsLoss,
    ) -> Float[Tensor, ""]:
        """l(ŷ, y) of Eq. 9: the distance of a student's outputs from its teacher's."""

    @abstractmethod
    def outputs(self, names: Sequence[str]) -> int:
        """Scores that a head or a header gives.

        Args:
            names: of the labels, in their order.
        """

    def header_outputs(self, names: Sequence[str], hidden: int) -> int:
        """Numbers that a header gives, for each sample or token, on features of a hidden size."""
        return self.outputs(names)

    def head(self, features: int, names: Sequence[str]) -> nn.Linear:
        """The reference's untrained head on its pooled features, see :meth:`outputs`."""
        return nn.Linear(features, self.outputs(names))

    def evaluation(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
    ) -> Evaluation:
        """Evaluation of a batch; its labels may be on another device."""
        labels = labels.to(outputs.device)
        return Evaluation(
            losses=float(self.loss(outputs, labels, "sum")),
            hits=float(self.hits(outputs, labels).sum()),
            count=int((labels != ABSENT).sum()),
        )

    def evaluations(
        self,
        outputs: Float[Tensor, "rows scores positions"],
        labels: Int[Tensor, "rows positions"],
    ) -> list[Evaluation]:
        """Evaluation of each row: of each device where many are evaluated together."""
        losses = self.loss(outputs, labels, "none").sum(dim=1).tolist()
        hits = self.hits(outputs, labels).sum(dim=1).tolist()
        counts = (labels != ABSENT).sum(dim=1).tolist()
        return [Evaluation(*row) for row in zip(losses, hits, counts, strict=True)]

    def written(self, evaluation: Evaluation) -> str:
        """The score as people read it, with its name."""
        return f"{self.metric} {evaluation.score:.4f}"
