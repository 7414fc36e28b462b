"""Messages that leave a device, in words, with their protections."""

from __future__ import annotations

from dataclasses import dataclass

from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.personalization.base import NOT_PROTECTED
from acme_fleet.personalization.rules import rule_of


@dataclass(frozen=True)
class Leaving:
    """One kind of message that a device sends: how often, what is in it, how it is protected."""

    kind: str
    often: str
    holds: str
    protection: str


def what_leaves(personalization: Personalization, *, writes: bool = False) -> list[Leaving]:
    """Every kind of message that a device sends, in the order of Algorithm 2.

    Args:
        personalization: of the fleet.
        writes: the models are language models.
    """
    privacy, rule = personalization.privacy, rule_of(personalization)
    protection = "; ".join(rule.protections()) or NOT_PROTECTED
    measured = (
        "losses, shares of right tokens and answers, speed, counts of neurons, tokens and answers"
        if writes
        else "three accuracies, latency, counts of neurons"
    )
    reported = f"sizes, {measured}, test samples and raw bytes"
    profile = "name, storage, precisions, constants of its energy"
    features = (
        f"features of {rows} training samples at most, a row each, "
        f"{privacy.sketch_bits} bits a number"
        if (rows := personalization.rows_sent)
        else "no feature, only that it is there"
    )
    return [
        Leaving("DeviceProfile", "once", profile, NOT_PROTECTED),
        Leaving("FeatureSample", "once", features, _of_features(privacy) if rows else ""),
        Leaving(rule.upload_type.__name__, "every round", rule.disclosed(), protection),
        Leaving("RoundReport", "every round", "how many neurons are left", NOT_PROTECTED),
        Leaving("DeviceReport", "at the end", reported, NOT_PROTECTED),
    ]


def _of_features(privacy: Privacy) -> str:
    measures = []
    if privacy.sketch_dim is not None:
        measures.append(f"projected to {privacy.sketch_dim} numbers a row")
    if privacy.feature_noise is not None:
        measures.append(f"clipped, noise {privacy.feature_noise:g} times the sensitivity")
    return "; ".join(measures) or NOT_PROTECTED
