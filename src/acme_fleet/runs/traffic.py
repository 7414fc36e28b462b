"""Bytes on the links, and what the noisy ones among them give away: planned, and as it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.personalization import Personalization
from acme_fleet.errors import FleetError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import FeatureSample, Upload
from acme_fleet.privacy.accounting import PrivacyLoss, privacy_loss
from acme_fleet.runs.events import Event, messages_of, method_and_resent
from acme_fleet.runs.summary import Traffic


def count_traffic(events: Iterable[Event], raw_data_bytes: int) -> Traffic:
    """Sum the messages' bytes by link and direction; up is towards the cloud.

    Each message of the method counts once; what was sent again is summed apart.
    """
    messages, resent = method_and_resent(events)
    totals = dict.fromkeys(
        ("cloud_edge_bytes", "edge_device_bytes", "up_bytes", "down_bytes", "device_up_bytes"), 0
    )
    for event in messages:
        with_cloud, up = event.tier == "cloud", event.direction == "up"
        totals["cloud_edge_bytes" if with_cloud else "edge_device_bytes"] += event.size_bytes
        totals["up_bytes" if up else "down_bytes"] += event.size_bytes
        if up and not with_cloud:
            totals["device_up_bytes"] += event.size_bytes
    ratio = totals["device_up_bytes"] / max(1, raw_data_bytes)
    again = sum(event.size_bytes for event in resent)
    return Traffic(**totals, raw_data_bytes=raw_data_bytes, upload_ratio=ratio, resent_bytes=again)


def sent_by_devices(
    events: Iterable[Event],
    devices: Iterable[str],
    before: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> dict[str, dict[str, list[int]]]:
    """For each device, by kind, the bytes of every message that it sent, oldest first.

    ``before`` is likewise what it had sent in the runs that this one took over from.
    """
    sent: dict[str, defaultdict[str, list[int]]] = {
        name: defaultdict(list, {k: [*v] for k, v in (before or {}).get(name, {}).items()})
        for name in devices
    }
    for event in messages_of(events):
        if event.sender in sent:
            sent[event.sender][event.type].append(event.size_bytes)
    return {name: dict(kinds) for name, kinds in sent.items()}


def row_bytes(personalization: Personalization, hidden: int) -> int:
    """Bytes of one row of a feature sample.

    Raises:
        FleetError: if a sketch would be no smaller than the features.
    """
    privacy = personalization.privacy
    if privacy.sketch_dim is not None and privacy.sketch_dim >= hidden:
        raise FleetError(
            f"personalization.privacy.sketch_dim: {privacy.sketch_dim} is not below the model's "
            f"hidden size, {hidden}"
        )
    return (privacy.sketch_dim or hidden) * privacy.sketch_bits // 8


def expected_loss(personalization: Personalization) -> PrivacyLoss | None:
    """(ε, δ) of a device that sends all its messages; none if it adds no noise.

    Raises:
        FleetError: if the library that accounts for it is missing.
    """
    return _loss(personalization, personalization.rounds)


def privacy_losses(
    fleet: Fleet, sent: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, PrivacyLoss]:
    """(ε, δ) by device, for as many feature samples and importance sets as it sent.

    Nobody has any where there is no noise. What was sent again counts again, though within a run it
    has the same noise and tells nothing new.
    """
    counts = {
        name: (
            sum(len(sizes) for kind, sizes in own.items() if _is_upload(kind)),
            max(1, len(own.get(FeatureSample.__name__, ()))),
        )
        for name, own in sent.items()
    }
    losses = {name: _loss(fleet.personalization, *own) for name, own in counts.items() if own[0]}
    return {name: loss for name, loss in losses.items() if loss is not None}


def _is_upload(kind: str) -> bool:
    return issubclass(Message.registry.get(kind, Message), Upload)


def _loss(personalization: Personalization, uploads: int, samples: int = 1) -> PrivacyLoss | None:
    privacy = personalization.privacy
    if privacy.feature_noise is None and privacy.importance_noise is None:
        return None
    weights = personalization.mixes_weights
    rows = personalization.rows_sent
    return privacy_loss(privacy, rows, uploads, samples=samples, weights=weights)
