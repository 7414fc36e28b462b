"""Protected messages in whole runs: the same results where nothing is lost, and what is sent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.device import client
from acme_fleet.device.client import DeviceClient
from acme_fleet.errors import FleetError, ProtocolError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import (
    FeatureSample,
    ImportanceUpdate,
    ImportanceUpload,
    MaskedRoundStart,
    MaskedUpload,
    RoundStart,
    Upload,
)
from acme_fleet.pipeline import customize
from acme_fleet.runs.journal import Journal
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.classification import CLASSIFICATION
from event_records import event_records

North = Callable[..., Fleet]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Message]]:
    """All messages that devices send, in order."""
    seen: list[tuple[str, Message]] = []

    class Device(DeviceClient):
        def handle(self, message: Message) -> Message:
            reply = super().handle(message)
            seen.append((self._settings.name, reply))
            return reply

    monkeypatch.setattr(client, "DeviceClient", Device)
    return seen


def _run(north: North, path: Path, rounds: int = 1, **privacy: Any) -> Summary:
    """The tiny fleet's north from its coarse header on, with other settings of privacy."""
    fleet = north(**{"personalization.rounds": rounds, "personalization.privacy": privacy})
    (path / "fleet.yaml").write_text(fleet.to_yaml())
    return customize(fleet, path, resume=True)


def _outcome(summary: Summary) -> list[dict[str, Any]]:
    return [device.model_dump(exclude={"latency_s"}) for device in summary.devices]


def _models(path: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in path.glob("devices/*/model.safetensors")}


def test_masked_rounds_end_where_open_ones_do(
    north: North, prepared: Path, tmp_path: Path, sent: list[tuple[str, Message]]
) -> None:
    pytest.importorskip("cryptography")
    other = shutil.copytree(prepared, tmp_path / "open")
    masked = _run(north, prepared, rounds=2, masking=True)
    uploads = [message for _, message in sent if isinstance(message, Upload)]
    assert len(uploads) == 2 * 2
    for upload in uploads:
        assert isinstance(upload, MaskedUpload)
        assert len(upload.shares) == 2  # a share for each device of the cluster
    assert _outcome(_run(north, other, rounds=2)) == _outcome(masked)
    assert _models(prepared) == _models(other)


def test_a_device_that_fails_in_a_masked_round_is_left_out_of_the_masks(
    north: North, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")

    class Device(DeviceClient):
        def handle(self, message: Message) -> Message:
            if isinstance(message, MaskedRoundStart) and (
                self._settings.name == "cam-1" and message.round == 1
            ):
                raise ProtocolError("its battery is empty")
            return super().handle(message)

    monkeypatch.setattr(client, "DeviceClient", Device)
    summary = _run(north, prepared, rounds=2, masking=True)
    events = [e for e in event_records(prepared / "events.jsonl") if e.get("to") == "cam-2"]
    kinds = [event["type"] for event in events]
    assert kinds.count("MaskedRoundStart") == 3  # the second round twice
    assert kinds.count("MaskedUpdate") == 2
    assert {device.name for device in summary.devices} == {"cam-1", "cam-2"}


def test_a_masked_device_never_sends_an_open_set(north: North, prepared: Path) -> None:
    """An edge server that asks without keys gets nothing."""
    pytest.importorskip("cryptography")
    _run(north, prepared, masking=True)
    fleet = Fleet.from_yaml(prepared / "fleet.yaml")
    world = load_world(fleet)
    device = DeviceClient(
        fleet.devices[0],
        CLASSIFICATION,
        fleet.personalization,
        lambda *_: world.private["cam-1"],
        prepared / "devices" / "cam-1",
        fleet.seed,
        Journal(prepared / "events.jsonl"),
    )
    with pytest.raises(ProtocolError, match="a device does not answer RoundStart"):
        device.handle(RoundStart(round=0))
    open_set = ImportanceUpdate(round=0, importance={})
    with pytest.raises(ProtocolError, match="a device does not answer ImportanceUpdate"):
        device.handle(open_set)


def test_sketches_of_eight_bits_are_what_is_sent(
    north: North, prepared: Path, sent: list[tuple[str, Message]]
) -> None:
    summary = _run(north, prepared, sketch_dim=5, sketch_bits=8)
    samples = [message for _, message in sent if isinstance(message, FeatureSample)]
    assert len(samples) == 2
    for sample in samples:
        assert sample.features.shape == (12, 5)
        assert sample.features.dtype == torch.int8
        assert sample.scale > 0
    assert len(summary.devices) == 2


def test_noise_is_in_every_set_and_differs_from_device_to_device(
    north: North, prepared: Path, tmp_path: Path, sent: list[tuple[str, Message]]
) -> None:
    pytest.importorskip("dp_accounting")
    again = shutil.copytree(prepared, tmp_path / "again")
    summary = _run(north, prepared, feature_noise=1.0, importance_noise=2.0)
    first = [message for _, message in sent]
    sent.clear()
    _run(north, again, feature_noise=1.0, importance_noise=2.0)
    for one, two in zip(first, (message for _, message in sent), strict=True):
        if isinstance(one, FeatureSample) and isinstance(two, FeatureSample):
            assert not torch.equal(one.features, two.features)  # another secret
        if isinstance(one, ImportanceUpload):
            total = sum(float(values.sum()) for values in one.importance.values())
            assert total == pytest.approx(1, abs=1e-5)
    page = (prepared / "report.html").read_text()
    assert "Privacy loss" in page
    loss = summary.privacy_loss["cam-1"]
    assert loss.device is not None
    assert f"<td>{loss.device:.3g}</td>" in page
    assert Summary.read(prepared / "summary.json") == summary


def test_masks_with_open_headers_make_no_sense(tiny: Callable[..., Fleet]) -> None:
    with pytest.raises(FleetError, match="masking hides importance sets alone"):
        tiny(**{"personalization.privacy": {"masking": True}, "personalization.mix": "both"})


def test_the_report_lists_all_that_left_each_device(finished: Any) -> None:
    summary, page = finished.summary, (finished.path / "report.html").read_text()
    assert "What leaves a device" in page
    assert summary.sent.keys() == {"cam-1", "cam-2", "badge-1", "badge-2"}
    for kinds in summary.sent.values():
        assert len(kinds["FeatureSample"]) == len(kinds["DeviceReport"]) == 1
        assert len(kinds["ImportanceUpload"]) == len(kinds["RoundReport"]) == 3
    total = sum(sum(sizes) for kinds in summary.sent.values() for sizes in kinds.values())
    assert total == summary.traffic.device_up_bytes
    assert summary.privacy_loss == {}
    assert "Privacy loss" not in page


def test_masked_sum_that_one_device_spoils_leaves_the_others_with_their_own_sets(
    north: North, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edge server cannot see who lied; nobody is lost, and the journal tells of the round."""
    pytest.importorskip("cryptography")

    class Device(DeviceClient):
        def handle(self, message: Message) -> Message:
            reply = super().handle(message)
            if self._settings.name != "cam-1" or not isinstance(reply, MaskedUpload):
                return reply
            spoilt = {name: torch.full_like(of, 2**31 - 1) for name, of in reply.shares.items()}
            return reply.model_copy(update={"shares": spoilt})

    monkeypatch.setattr(client, "DeviceClient", Device)
    summary = _run(north, prepared, masking=True)
    assert [d.name for d in summary.devices] == ["cam-1", "cam-2"]
    told = [e for e in event_records(prepared / "events.jsonl") if "refused" in e.get("fault", "")]
    assert {event["actor"] for event in told} == {"cam-1", "cam-2"}
    assert summary.devices[1].neurons < summary.devices[1].neurons_coarse
