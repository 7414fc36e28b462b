"""Generation: the next token of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.config.backbone import LogitsLoss
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.tasks.base import ABSENT, Evaluation, Reduction, Task, logits_distance


class Generation(Task):
    """Cross-entropy of the next token, mean over tokens; compared by it, as perplexity is e to it.

    The score is the share of tokens that are the most probable ones. Of texts with answers, only
    tokens of answers have labels.
    """

    metric = "token accuracy"
    at_once = 32  # each token has a logit for each word
    per_token = True

    def __init__(self, head: Float[Tensor, "words hidden"] | None = None) -> None:
        """With ``head``, outputs are last hidden states; without it, they are logits."""
        self._head = head

    def through(self, head: Float[Tensor, "words hidden"]) -> Generation:
        """See :class:`~acme_fleet.tasks.base.Task`."""
        return Generation(head.detach())

    def check(self, settings: Fleet) -> None:
        """See :class:`~acme_fleet.tasks.base.Task`."""
        reference, privacy = settings.reference, settings.personalization
        refused = (
            (
                settings.devices_at_once > 1,
                f"devices_at_once: {settings.devices_at_once} devices",
                "each device trains alone; set it to 1",
            ),
            (
                privacy.classifier == "holders",
                "personalization.classifier: holders",
                "there are no classes to hold; set it to everyone",
            ),
            (
                reference.recipe == "contrastive",
                "reference.recipe: contrastive",
                "there are no classes to contrast; set it to labels",
            ),
            (
                reference.pooling in ("first_mean", "attention"),
                f"reference.pooling: {reference.pooling}",
                "texts are compared by one hidden state; set it to auto, mean, first or last",
            ),
            (
                settings.search.backbone_learning_rate > 0,
                f"search.backbone_learning_rate: {settings.search.backbone_learning_rate:g}",
                "headers go through the backbone's frozen language head; set it to 0",
            ),
        )
        for wrong, what, remedy in refused:
            if wrong:
                raise FleetError(f"{what} is not supported by task: generation: {remedy}")

    def loss(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
        reduction: Reduction = "mean",
    ) -> Float[Tensor, ...]:
        """Cross-entropy of the tokens that have labels."""
        logits, wanted, known = self._answers(outputs, labels)
        if reduction != "none":
            return F.cross_entropy(logits, wanted, reduction=reduction)
        each = logits.new_zeros(labels.shape)
        each[known] = F.cross_entropy(logits, wanted, reduction="none")
        return each

    def hits(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
    ) -> Bool[Tensor, " batch *positions"]:
        """True where the most probable token is the label."""
        logits, wanted, known = self._answers(outputs, labels)
        each = torch.zeros_like(labels, dtype=torch.bool)
        each[known] = logits.argmax(dim=1) == wanted
        return each

    def evaluation(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
    ) -> Evaluation:
        """See the base class; the language head is applied once."""
        logits, wanted, _ = self._answers(outputs, labels.to(outputs.device))
        losses = F.cross_entropy(logits.double(), wanted, reduction="sum")
        hits = (logits.argmax(dim=1) == wanted).sum()
        return Evaluation(float(losses), float(hits), len(wanted), by_loss=True)

    def imitation(
        self,
        student: Float[Tensor, "tokens words"],
        teacher: Float[Tensor, "tokens words"],
        kind: LogitsLoss,
    ) -> Float[Tensor, ""]:
        """Eq. 9's mean squared error, or cross-entropy with the teacher's probabilities."""
        return logits_distance(student, teacher, kind)

    def outputs(self, names: Sequence[str]) -> int:
        """There is no number of scores without a model.

        Raises:
            TypeError: always; see :meth:`header_outputs`.
        """
        raise TypeError("a language model has a score for each word, whatever the labels' names")

    def header_outputs(self, names: Sequence[str], hidden: int) -> int:
        """A header changes the hidden state."""
        return hidden

    def written(self, evaluation: Evaluation) -> str:
        """See the base class."""
        loss = evaluation.loss
        return f"{super().written(evaluation)}, perplexity {perplexity(loss):.3f}"

    def _answers(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
    ) -> tuple[
        Float[Tensor, "known words"], Int[Tensor, " known"], Bool[Tensor, " batch *positions"]
    ]:
        """Logits and labels where there is a label, and the places of these."""
        known = labels != ABSENT
        chosen = outputs.movedim(1, -1)[known]
        logits = chosen if self._head is None else F.linear(chosen, self._head)
        return logits, labels[known], known


def perplexity(loss: float) -> float:
    """e to the loss per token; as large as a number can be where it is larger."""
    return float(torch.tensor(loss, dtype=torch.float64).exp().clamp(max=1e30))


GENERATION = Generation()
"""The task of fleets of language models."""
