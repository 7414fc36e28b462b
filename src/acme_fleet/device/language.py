"""What a device reports of a language model."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from acme_fleet.data.samples import Samples
from acme_fleet.messages.results import LanguageResult
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.header.module import Header
from acme_fleet.tasks.base import Evaluation
from acme_fleet.training.answers import exact_share, prompted

_LARGEST = 1e30


def language_result(
    backbone: PreTrainedModel,
    headers: tuple[Header, Header],
    found: Mapping[str, Evaluation],
    test: Samples,
) -> LanguageResult:
    """Losses per token and, where the texts have prompts, shares of answers that are exactly right.

    Args:
        backbone: frozen.
        headers: as received, and as shipped.
        found: evaluations of ``coarse``, ``best`` and ``linear`` on the test data.
        test: the same data as tokens.
    """
    pairs = prompted(test)
    shares = [exact_share(AcmeForCausalLM.of(backbone, header), pairs) for header in headers]
    loss = {name: min(each.loss, _LARGEST) for name, each in found.items()}
    return LanguageResult(
        tokens=found["best"].count,
        loss_coarse=loss["coarse"],
        loss=loss["best"],
        loss_linear=loss["linear"],
        answers=len(pairs),
        exact_coarse=shares[0],
        exact=shares[1],
    )
