"""Devices that share their headers' weights: through messages, the same every time, contained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.personalization import Personalization
from acme_fleet.device import client
from acme_fleet.device.client import DeviceClient
from acme_fleet.edge.memory import recall, remember
from acme_fleet.errors import DamagedError, ProtocolError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import (
    ByClassUpload,
    HeaderUpload,
    ImportanceUpload,
    WeightsUpload,
)
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.header.module import initial_tensors
from acme_fleet.models.storage import write_tensors
from acme_fleet.personalization.by_class import ByClassRule
from acme_fleet.personalization.importance import ImportanceRule
from acme_fleet.personalization.rules import rule_of
from acme_fleet.personalization.weights import header_shapes
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from event_records import event_records

PLAN = HeaderPlan(
    genotype=Genotype(
        blocks=(Block(inputs=(0, 1), operations=("conv3", "identity")),), cells=1, channels=3
    ),
    hidden=4,
    classes=2,
    axes=1,
)
LAYER = next(iter(PLAN.layers))


def _upload(seed: int, **kept: list[int]) -> WeightsUpload:
    plan = HeaderPlan.model_validate({**PLAN.model_dump(), "kept": kept})
    random = torch.Generator().manual_seed(seed)
    return WeightsUpload(
        round=1,
        importance={name: torch.rand(3, generator=random) for name in PLAN.layers},
        header=initial_tensors(plan.shapes(), random),
        kept=kept,
    )


# --- at the edge ------------------------------------------------------------------------------


def test_what_is_mixed_is_what_was_asked_for() -> None:
    uploads = {"a": _upload(1), "b": _upload(2)}
    coarse = initial_tensors(PLAN.shapes(), torch.Generator().manual_seed(0))
    sets = {name: upload.importance for name, upload in uploads.items()}

    def mixed(mix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = rule_of(Personalization(mix=mix)).mix(uploads, PLAN, coarse, np.full((2, 2), 0.5))
        return found.parts["a"].importance.by_layer(), found.parts["a"].header

    plain = {name: ImportanceUpload(round=1, importance=own) for name, own in sets.items()}
    alone = ImportanceRule(Personalization()).mix(plain, PLAN, coarse, np.full((2, 2), 0.5))
    weights, both = (mixed(mix) for mix in ("weights", "both"))
    ratio = weights[0][LAYER] / sets["a"][LAYER]
    torch.testing.assert_close(ratio, ratio[:1].expand(3))  # its own set, scaled
    torch.testing.assert_close(both, (alone.parts["a"].by_layer(), weights[1]))
    name = "classifier.pooled.weight"
    expected = (uploads["a"].header[name] + uploads["b"].header[name]) / 2
    torch.testing.assert_close(both[1][name], expected)


def test_kept_channels_that_do_not_exist_are_refused() -> None:
    shapes = header_shapes("cam-1", {LAYER: [0, 2]}, PLAN)
    assert shapes[f"layers.{LAYER}.bias"] == (2,)
    wrong: list[dict[str, list[int]]] = [{LAYER: [0, 3]}, {LAYER: [2, 0]}, {"elsewhere": [0]}]
    for kept in wrong:
        with pytest.raises(ProtocolError, match="cam-1 kept"):
            header_shapes("cam-1", kept, PLAN)


def test_classes_that_do_not_exist_are_refused() -> None:
    rule = ByClassRule(Personalization(mix="both", classifier="holders"))
    own = _upload(1)
    for held in ([0], [0, 1], [0, 2], [60_000]):
        upload = ByClassUpload(round=1, importance=own.importance, header=own.header, held=held)
        if max(held) < PLAN.classes:
            rule.check("cam-1", upload, PLAN, [])
        else:
            with pytest.raises(ProtocolError, match="classes that cam-1 holds"):
                rule.check("cam-1", upload, PLAN, [])


def test_what_is_of_this_round_is_not_read_back(tmp_path: Path) -> None:
    old, new = {"a": _upload(1), "b": _upload(2, **{LAYER: [1]})}, {"a": _upload(3)}
    remember(tmp_path, old)
    remember(tmp_path, {name: own.model_copy(update={"round": 2}) for name, own in new.items()})
    known = recall(tmp_path, 3, new, ["a", "b", "c"], 0.5, WeightsUpload)
    assert known.keys() == {"a", "b"}
    assert known["a"] == (new["a"], 1.0)
    upload, freshness = known["b"]
    assert freshness == 0.25
    assert upload.kept == {LAYER: [1]}
    torch.testing.assert_close(upload.header, old["b"].header)
    assert recall(tmp_path, 3, new, ["a", "b"], 0.0, WeightsUpload).keys() == {"a"}
    with pytest.raises(DamagedError, match="unexpected message of type 'WeightsUpload'"):
        recall(tmp_path, 3, {}, ["b"], 0.5, ImportanceUpload)


def test_an_upload_that_an_older_version_kept_is_refused_by_name(tmp_path: Path) -> None:
    old = {f"importance.{name}": torch.rand(3) for name in PLAN.layers}
    about = {"round": 1, "kept": {}, "held": []}
    write_tensors(tmp_path / "b.safetensors", old, about, private=True)
    with pytest.raises(DamagedError, match=r"cannot read .*b\.safetensors"):
        recall(tmp_path, 3, {}, ["b"], 0.5, ImportanceUpload)


# --- whole runs -------------------------------------------------------------------------------


@pytest.fixture
def fleet(north: Callable[..., Fleet]) -> Fleet:
    """One cluster, mixing weights too, stopped before any device has got a model."""
    return north(**{"personalization.mix": "both", "personalization.rounds": 2})


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``sends(name, change)``: changes what one device uploads in its rounds."""

    def install(name: str, change: Callable[[HeaderUpload], HeaderUpload]) -> None:
        class Device(DeviceClient):
            def handle(self, message: Message) -> Message:
                reply = super().handle(message)
                own = self._settings.name == name and isinstance(reply, HeaderUpload)
                return change(reply) if own else reply

        monkeypatch.setattr(client, "DeviceClient", Device)

    return install


def _outcome(summary: Summary) -> list[dict[str, Any]]:
    return [device.model_dump(exclude={"latency_s"}) for device in summary.devices]


def _models(path: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in path.glob("devices/*/model.safetensors")}


def _uploads(path: Path) -> list[int]:
    events = event_records(path / "events.jsonl")
    return [event["bytes"] for event in events if event.get("type", "").endswith("Upload")]


class _StopInRound:
    """Stops a run at the beginning of a device's second round."""

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        if (actor, name, done) == ("cam-2", "round 2", 0):
            raise KeyboardInterrupt


def test_a_run_that_mixes_weights_is_the_same_after_a_stop(
    finished: Any, fleet: Fleet, prepared: Path, tmp_path: Path
) -> None:
    stopped = shutil.copytree(prepared, tmp_path / "stopped")
    whole = customize(fleet, prepared, resume=True)
    with pytest.raises(KeyboardInterrupt):
        customize(fleet, stopped, resume=True, observer=_StopInRound())
    resumed = customize(fleet, stopped, resume=True)
    assert _outcome(resumed) == _outcome(whole)
    assert _models(stopped) == _models(prepared)
    # The bytes of the weights are counted, and devices end elsewhere than without mixing.
    assert min(_uploads(prepared)) > max(_uploads(finished.path))
    alone = _models(finished.path)
    assert all(alone[name] != model for name, model in _models(prepared).items())


def test_a_header_that_does_not_fit_is_refused_and_a_huge_one_contained(
    fleet: Fleet, prepared: Path, sends: Callable[..., None]
) -> None:
    def spoil(upload: HeaderUpload) -> HeaderUpload:
        if upload.round == 0:
            huge = {name: 1e30 * values for name, values in upload.header.items()}
            return upload.model_copy(update={"header": huge})
        return upload.model_copy(update={"header": {}})

    sends("cam-1", spoil)
    summary = customize(fleet, prepared, resume=True)
    by_name = {device.name: device for device in summary.devices}
    # Its header is left out of the second round; it had a model already and still reports.
    assert by_name.keys() == {"cam-1", "cam-2"}
    assert by_name["cam-2"].accuracy > by_name["cam-2"].accuracy_coarse - 0.1
    received = [
        (event["to"], event["type"])
        for event in event_records(prepared / "events.jsonl")
        if event.get("type") == "WeightsUpdate"
    ]
    assert received.count(("cam-1", "WeightsUpdate")) == 1
    assert received.count(("cam-2", "WeightsUpdate")) == 2


def test_devices_tell_their_classes_only_where_rows_are_mixed_by_class(
    fleet: Fleet, prepared: Path, tmp_path: Path, sends: Callable[..., None]
) -> None:
    told: list[list[int]] = []

    def listen(upload: HeaderUpload) -> HeaderUpload:
        told.append(upload.held if isinstance(upload, ByClassUpload) else [])
        return upload

    sends("cam-1", listen)
    other = shutil.copytree(prepared, tmp_path / "holders")
    customize(fleet, prepared, resume=True)
    asked = fleet.personalization.model_copy(update={"classifier": "holders", "rounds": 2})
    by_class = fleet.model_copy(update={"personalization": asked})
    (other / "fleet.yaml").write_text(by_class.to_yaml())
    customize(by_class, other, resume=True)
    assert told[:2] == [[], []]
    assert told[2] == told[3] == sorted(set(told[2])) != []
    assert _models(other) != _models(prepared)


def test_without_similarity_no_feature_leaves_a_device_and_all_weigh_alike(
    north: Callable[..., Fleet], prepared: Path
) -> None:
    changes = {"mix": "both", "rounds": 1, "similarity": "none"}
    fleet = north(**{f"personalization.{name}": value for name, value in changes.items()})
    summary = customize(fleet, prepared, resume=True)
    assert len(summary.devices) == 2
    for cluster in summary.clusters:
        assert cluster.similarity == [[0.5, 0.5], [0.5, 0.5]]
    sizes = [
        event["bytes"]
        for event in event_records(prepared / "events.jsonl")
        if event.get("type") == "FeatureSample"
    ]
    assert len(sizes) == 2
    assert max(sizes) < 300  # an empty frame
