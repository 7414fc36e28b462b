"""Thousands of devices in one cluster, a part of them absent, late or lying: nothing is lost."""

from __future__ import annotations

import os
import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.device import client
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import (
    ProfileRequest,
    ReportRequest,
    RoundReport,
    Start,
    Update,
    Upload,
)
from acme_fleet.pipeline import customize
from acme_research.frame.many_devices import many_devices

_OUT, _LIARS = 0.2, 0.01
_MOST_MB = 2000


def _faulty(seed: int, seen: Counter[str]) -> type[Any]:
    """Devices that miss a fifth of the questions of the rounds, and of which a few lie.

    What a straggler answers comes after the deadline: to its edge server it did not answer.
    """

    class Device(client.DeviceClient):
        def handle(self, message: Message) -> Message:
            name = self._settings.name
            liar = random.Random(f"{seed} {name}").random() < _LIARS
            draw = random.Random(f"{seed} {name} {message.occasion} {type(message).__name__}")
            out = isinstance(message, Start | Update) and draw.random() < _OUT
            if out and draw.random() < 0.5:
                seen["absent"] += 1
                raise ProtocolError("it is out of reach")
            answer = super().handle(message)
            if out:
                seen["late"] += 1
                raise ProtocolError("no answer before the deadline")
            if liar and isinstance(answer, Upload | RoundReport):
                seen["lie"] += 1
                return answer.model_copy(update={"round": 7})
            return answer

    return Device


@pytest.fixture
def run(tmp_path: Path, quick: pytest.MonkeyPatch) -> Any:
    def faulty(count: int) -> tuple[Any, Counter[str], Path]:
        seen: Counter[str] = Counter()
        quick.setattr(client, "DeviceClient", _faulty(3, seen))
        fleet = many_devices(count, tmp_path, seed=3)
        return customize(fleet, tmp_path / "run"), seen, tmp_path / "run"

    return faulty


def _check(count: int, summary: Any, seen: Counter[str], path: Path) -> None:
    """Every device has its model, since all answer at the end, and every absence is told."""
    assert {device.name for device in summary.devices} == {f"d{n}" for n in range(count)}
    (cluster,) = summary.clusters
    assert not cluster.lost
    assert not summary.lost
    assert set(cluster.device_names) == {device.name for device in summary.devices}
    for device in summary.devices:
        assert (path / "devices" / device.name / "model.safetensors").exists()
        assert device.accuracy >= 0.0
    questions = 4 * count  # two rounds of two
    assert 0.14 * questions < seen["absent"] + seen["late"] < 0.24 * questions
    assert cluster.missed
    assert max(cluster.missed.values()) <= 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 < _MOST_MB


def test_devices_that_drop_out_come_late_or_lie_get_their_models(run: Any) -> None:
    """As many as need no sparse weights."""
    _check(60, *run(60))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_thousands_of_them(run: Any) -> None:
    """Twenty minutes on an idle core; ``ACME_DEVICES=300`` for a quicker look."""
    count = int(os.environ.get("ACME_DEVICES", "5000"))
    summary, seen, path = run(count)
    _check(count, summary, seen, path)
    assert all(summary.clusters[0].columns)
    assert seen["lie"] > 0


def test_the_questions_that_are_never_missed_are_those_of_the_beginning_and_the_end() -> None:
    """A device that misses these has no model or no report: it is lost, and told."""
    assert not issubclass(ProfileRequest, Start | Update)
    assert not issubclass(ReportRequest, Start | Update)
