"""Messages that leave a device: counted from the events, in words, and accounted for."""

from __future__ import annotations

from typing import Any

import pytest

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import examine
from acme_fleet.messages.edge_device import (
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    ImportanceUpload,
    RoundReport,
)
from acme_fleet.personalization.base import NOT_PROTECTED
from acme_fleet.personalization.disclosure import what_leaves
from acme_fleet.privacy.accounting import privacy_loss
from acme_fleet.runs.events import Event, MessageEvent, StageEvent
from acme_fleet.runs.traffic import privacy_losses, row_bytes, sent_by_devices

_TIME = "2026-01-01T00:00:00+00:00"


def _message(sender: str, receiver: str, kind: str, size: int) -> MessageEvent:
    return MessageEvent(
        time=_TIME,
        sender=sender,
        receiver=receiver,
        type=kind,
        size_bytes=size,
        tier="cloud" if receiver == "cloud" else "device",
        direction="down" if sender == "north" and receiver != "cloud" else "up",
    )


EVENTS: list[Event] = [
    _message("north", "cam-1", "ProfileRequest", 10),
    _message("cam-1", "north", "DeviceProfile", 100),
    _message("cam-1", "north", "ImportanceUpload", 7),
    _message("cam-2", "north", "ImportanceUpload", 9),
    StageEvent(time=_TIME, stage="round 1", actor="cam-1", tier="device", seconds=1.0),
    _message("cam-1", "north", "ImportanceUpload", 8),
    _message("north", "cloud", "ClusterReport", 1000),
]


def _fleet(**privacy: Any) -> Fleet:
    content = Fleet.from_yaml(EXAMPLE).model_dump()
    content["personalization"]["privacy"] = privacy
    return Fleet.parse(content)


def test_every_message_that_a_device_sent_is_counted_by_kind():
    sent = sent_by_devices(EVENTS, ["cam-1", "cam-2", "cam-3"])
    assert sent == {
        "cam-1": {"DeviceProfile": [100], "ImportanceUpload": [7, 8]},
        "cam-2": {"ImportanceUpload": [9]},
        "cam-3": {},
    }


def test_every_kind_of_message_that_goes_up_from_a_device_is_told():
    up = {DeviceProfile, FeatureSample, ImportanceUpload, RoundReport, DeviceReport}
    assert {one.kind for one in what_leaves(Personalization())} == {k.__name__ for k in up}


def test_protections_are_told_where_they_are_on_and_only_there():
    plain = {one.kind: one.protection for one in what_leaves(Personalization())}
    assert set(plain.values()) == {NOT_PROTECTED}
    privacy = Privacy(sketch_dim=16, sketch_bits=8, feature_noise=2, importance_noise=3)
    told = {one.kind: one for one in what_leaves(Personalization(privacy=privacy, mix="both"))}
    upload = told["WeightsUpload"]
    for words in ("16 numbers a row", "noise 2 times"):
        assert words in told["FeatureSample"].protection
    assert "8 bits a number" in told["FeatureSample"].holds  # which hides next to nothing
    coarser = {
        one.kind: one for one in what_leaves(Personalization(privacy=Privacy(sketch_bits=8)))
    }
    assert coarser["FeatureSample"].protection == NOT_PROTECTED
    assert "noise 3 times" in upload.protection
    assert "weights not protected" in upload.protection
    assert "header's weights" in upload.holds
    assert told["DeviceReport"].protection == NOT_PROTECTED
    masked = what_leaves(Personalization(privacy=Privacy(masking=True)))
    assert [one.kind for one in masked if "masked" in one.protection] == ["MaskedUpload"]


def test_a_language_model_reports_losses_and_shares_of_tokens():
    told = what_leaves(Personalization(), writes=True)[-1].holds
    assert "shares of right tokens and answers" in told
    assert "accuracies" not in told


def test_what_is_not_sent_is_not_told():
    alike = Personalization(similarity="none", mix="both", classifier="holders")
    told = {one.kind: one for one in what_leaves(alike)}
    assert told["FeatureSample"].holds.startswith("no feature")
    assert "the classes in its train set" in told["ByClassUpload"].holds
    for one in what_leaves(Personalization(mix="both")):
        assert "classes" not in one.holds


def test_the_loss_counts_every_importance_set_that_was_sent():
    pytest.importorskip("dp_accounting")
    fleet = _fleet(feature_noise=2.0, importance_noise=3.0)
    losses = privacy_losses(fleet, sent_by_devices(EVENTS, ["cam-1", "cam-2", "cam-3"]))
    privacy, rows = fleet.personalization.privacy, fleet.personalization.feature_samples
    assert losses == {
        "cam-1": privacy_loss(privacy, rows, 2),
        "cam-2": privacy_loss(privacy, rows, 1),
    }
    assert privacy_losses(_fleet(), sent_by_devices(EVENTS, ["cam-1"])) == {}
    # Before an update it had sent two feature samples and a set.
    before = {"cam-1": {"FeatureSample": [7, 7], "ImportanceUpload": [9]}, "gone": {"X": [1]}}
    sent = sent_by_devices([], ["cam-1", "cam-2"], before)
    assert sent == {"cam-1": before["cam-1"], "cam-2": {}}
    (loss,) = privacy_losses(fleet, sent).values()
    assert loss == privacy_loss(privacy, rows, 1, samples=2)
    once = privacy_loss(privacy, rows, 1)
    assert loss.features is not None
    assert once.features is not None
    assert loss.features > once.features
    assert loss.importance == once.importance


def test_the_plan_knows_the_bytes_of_sketches_and_shares():
    pytest.importorskip("cryptography")
    plain, fleet = examine(_fleet()), _fleet(sketch_dim=16, sketch_bits=8, masking=True)
    plan = examine(fleet)
    assert plan.feature_bytes == 16 * fleet.personalization.feature_samples
    assert plan.round_bytes == max(len(c.devices) for c in fleet.clusters) * plain.round_bytes


def test_a_sketch_that_is_no_smaller_than_the_features_is_refused():
    fleet = _fleet(sketch_dim=64)
    with pytest.raises(FleetError, match=r"sketch_dim: 64 is not below the model's hidden size, 3"):
        row_bytes(fleet.personalization, hidden=32)
    assert row_bytes(fleet.personalization, hidden=65) == 128
