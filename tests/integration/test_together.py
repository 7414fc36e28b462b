"""Devices that train together in one process end where each alone would have."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.data.partition import load_world
from acme_fleet.device import client
from acme_fleet.device.client import DeviceClient
from acme_fleet.device.state import DeviceFolder
from acme_fleet.errors import DamagedError, RunError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import RoundStart
from acme_fleet.models.parts import Parts
from acme_fleet.pipeline import customize
from acme_fleet.simulation import together
from event_records import event_records


def test_a_cluster_that_trains_together_ends_where_one_by_one_ends(
    finished, tiny: Callable[..., Fleet], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "train_header", lambda *_: pytest.fail("a device trained alone"))
    fleet = tiny(devices_at_once=10)
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    summary = customize(fleet, prepared, resume=True)
    for ours, alone in zip(summary.devices, finished.summary.devices, strict=True):
        assert (ours.name, ours.neurons) == (alone.name, alone.neurons)
        assert ours.accuracy == pytest.approx(alone.accuracy, abs=1.5 / alone.test_samples)
        models = [
            load_file(path / "devices" / ours.name / "model.safetensors")
            for path in (prepared, finished.path)
        ]
        assert models[0].keys() == models[1].keys()
        for name, tensor in models[0].items():
            assert tensor.allclose(models[1][name], atol=1e-3), name
    stages = [event for event in event_records(prepared / "events.jsonl") if "stage" in event]
    actors = [event["actor"] for event in stages if ", together: " in event["stage"]]
    # three rounds and the fine-tuning in each cluster
    assert actors == ["north"] * 4 + ["south"] * 4


@pytest.mark.parametrize("at_once", [1, 10])
def test_the_last_training_has_epochs_of_its_own(
    at_once: int, tiny: Callable[..., Fleet], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[int] = Counter()

    def spy(work: Any) -> Callable[..., Any]:
        def train(*arguments: Any, **options: Any) -> Any:
            seen[next(a.epochs for a in arguments if isinstance(a, Training))] += 1
            return work(*arguments, **options)

        return train

    monkeypatch.setattr(client, "train_header", spy(client.train_header))
    monkeypatch.setattr(together, "train_headers", spy(together.train_headers))
    fleet = tiny(devices_at_once=at_once, **{"personalization.last_epochs": 7})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    customize(fleet, prepared, resume=True)
    times = 1 if at_once > 1 else 2  # two clusters of two devices
    assert seen == {fleet.personalization.local.epochs: 2 * times * 3, 7: 2 * times}
    assert fleet.personalization.training_in_all.epochs == sum(seen.elements()) // (2 * times)


def test_headers_that_are_mixed_are_the_same_ones(
    tiny: Callable[..., Fleet], prepared: Path, tmp_path: Path
) -> None:
    """With mixed weights a round keeps another epoch than the fine-tuning does."""
    outcomes = []
    for at_once in (1, 10):
        path = shutil.copytree(prepared, tmp_path / str(at_once))
        changes = {"personalization.mix": "both", "personalization.rounds": 1}
        fleet = tiny(devices_at_once=at_once, **changes)
        (path / "fleet.yaml").write_text(fleet.to_yaml())
        outcomes.append(customize(fleet, path, resume=True).devices)
    for alone, joined in zip(*outcomes, strict=True):
        assert joined.neurons == alone.neurons
        assert joined.accuracy == pytest.approx(alone.accuracy, abs=1.5 / alone.test_samples)


def test_a_device_that_cannot_train_says_so_itself_and_the_others_train(
    tiny: Callable[..., Fleet], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device(DeviceClient):
        def handle(self, message: Message) -> Message:
            if isinstance(message, RoundStart) and self._settings.name == "cam-2":
                shutil.rmtree(self._folder.path / "state", ignore_errors=True)
            return super().handle(message)

        def pending(self, message: Message) -> int | None:
            if isinstance(message, RoundStart) and self._settings.name == "cam-2":
                raise RunError("its disk is gone")
            return super().pending(message)

    monkeypatch.setattr(client, "DeviceClient", Device)
    fleet = tiny(devices_at_once=2, **{"personalization.rounds": 1, "personalization.quorum": 0.5})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    summary = customize(fleet, prepared, resume=True)
    assert [device.name for device in summary.devices] == ["cam-1", "badge-1", "badge-2"]
    assert summary.clusters[0].lost == {"cam-2": "cam-2 has received no model yet"}


def test_features_are_computed_once_kept_on_disk_and_forgotten_in_the_end(
    finished, tmp_path: Path
) -> None:
    private = load_world(finished.fleet).private["cam-1"]
    assignment = DeviceFolder(finished.path / "devices" / "cam-1").assignment()
    assert not list(finished.path.glob("devices/*/state/features.safetensors"))
    folder = DeviceFolder(tmp_path / "cam-1")
    folder.accept(assignment)
    features = folder.features(private)
    file = tmp_path / "cam-1" / "state" / "features.safetensors"
    written = file.stat().st_mtime_ns
    folder.accept(assignment)
    again = DeviceFolder(tmp_path / "cam-1").features(private)
    assert file.stat().st_mtime_ns == written
    for split in ("train", "validation", "test"):
        one, other = getattr(features, split), getattr(again, split)
        assert one.labels.equal(getattr(private, split).labels)
        assert all(one.inputs[name].equal(other.inputs[name]) for name in one.inputs)
    folder.forget_features()
    assert not file.exists()


def test_what_belongs_to_another_model_is_forgotten(finished, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path / "devices" / "cam-1", tmp_path / "cam-1")
    folder = DeviceFolder(path)
    assert folder.has_trained(3)
    assert folder.report() is not None
    folder.accept(folder.assignment())
    assert folder.has_trained(3)
    other = folder.assignment().model_copy(update={"class_names": ["another"] * 10})
    folder.accept(other)
    assert not folder.has_trained(3)
    assert folder.report() is None
    assert folder.assignment().class_names == other.class_names


def test_the_last_state_and_the_one_before_are_kept_and_no_round_behind_begins_anew(
    finished,
) -> None:
    for device in finished.fleet.devices:
        folder = DeviceFolder(finished.path / "devices" / device.name)
        state = sorted((folder.path / "state").iterdir())
        assert [path.name for path in state] == [
            "assignment.safetensors",
            "secret",
            "work.safetensors",
        ]
        assert Parts(state[-1]).names() == ["finished", "pruned-2", "trained-3"]
        assert {path.stat().st_mode & 0o777 for path in state} == {0o600}
        with pytest.raises(DamagedError, match=r"work\.safetensors: its states begin later"):
            folder.before(2, lambda: pytest.fail("it would begin anew"))
