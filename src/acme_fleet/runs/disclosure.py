"""Messages that leave a device, in words and in bytes, with their protections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from acme_fleet.config.personalization import Mix, Personalization, Privacy

NOT_PROTECTED = "not protected"


@dataclass(frozen=True)
class Leaving:
    """One kind of message that a device sends: how often, what is in it, how it is protected."""

    kind: str
    often: str
    holds: str
    protection: str


def what_leaves(personalization: Personalization) -> list[Leaving]:
    """Every kind of message that a device sends, in the order of Algorithm 2."""
    privacy, mix = personalization.privacy, personalization.mix
    numbers = "one number for each neuron of the header"
    if mix != "importance":
        numbers += ", and the header's weights"
    if personalization.classifier == "holders":
        numbers += ", and the classes in its train set"
    reported = "sizes, three accuracies, latency, counts of neurons, test samples and raw bytes"
    profile = "name, storage, constants of its energy"
    features = (
        f"features of {rows} training samples, a row each, {privacy.sketch_bits} bits a number"
        if (rows := personalization.rows_sent)
        else "no feature, only that it is there"
    )
    return [
        Leaving("DeviceProfile", "once", profile, NOT_PROTECTED),
        Leaving("FeatureSample", "once", features, _of_features(privacy) if rows else ""),
        Leaving("ImportanceUpload", "every round", numbers, _of_importance(privacy, mix)),
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


def _of_importance(privacy: Privacy, mix: Mix) -> str:
    measures = []
    if privacy.importance_noise is not None:
        measures.append(f"noise {privacy.importance_noise:g} times the sensitivity")
    if privacy.masking:
        measures.append("masked")
    if mix != "importance":
        measures.append("weights " + NOT_PROTECTED)
    return "; ".join(measures) or NOT_PROTECTED


def sent_by_devices(
    events: Iterable[Mapping[str, Any]], devices: Iterable[str]
) -> dict[str, dict[str, list[int]]]:
    """For each device, by kind, the bytes of every message that it sent, oldest first."""
    sent: dict[str, defaultdict[str, list[int]]] = {name: defaultdict(list) for name in devices}
    for event in events:
        if "bytes" in event and event["from"] in sent:
            sent[event["from"]][event["type"]].append(event["bytes"])
    return {name: dict(kinds) for name, kinds in sent.items()}
