"""Messages sent again count apart wherever a run was interrupted; a finished run stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_resume import StopAt
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.device import client
from acme_fleet.device.client import DeviceClient
from acme_fleet.errors import ProtocolError, QuorumError, RunError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import Start
from acme_fleet.pipeline import customize
from acme_fleet.runs.journal import Journal
from acme_fleet.runs.locks import LOCK, held
from acme_fleet.runs.summary import Summary, Traffic
from conftest import models_of
from event_records import event_records
from tiny_fleet import SHORT


class Whole(NamedTuple):
    """A run from beginning to end."""

    path: Path
    summary: Summary


@pytest.fixture(autouse=True, scope="module")
def same_latency() -> Iterator[None]:
    """A latency of as many digits in every run: messages then have as many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "measure_latency", lambda *_: 0.125)
        yield


@pytest.fixture(scope="module", params=["plain", "masked"])
def fleet(request: pytest.FixtureRequest, tiny: Callable[..., Fleet]) -> Fleet:
    devices = [{"name": "cam-1", "storage": "60 kB"}, {"name": "cam-2", "storage": "70 kB"}]
    changes = {
        **SHORT,
        "personalization.rounds": 2,
        "personalization.privacy": {"masking": request.param == "masked"},
        "clusters": [{"name": "north", "devices": devices}],
    }
    return tiny(**changes)


@pytest.fixture(scope="module")
def whole(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of ``fleet`` that nobody stopped. Not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return Whole(path, customize(fleet, path))


def _methods(traffic: Traffic) -> dict[str, float]:
    return traffic.model_dump(exclude={"resent_bytes"})


def _files(path: Path) -> dict[str, tuple[bytes, int]]:
    found = (file for file in path.rglob("*") if file.is_file())
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in found}


def _stop_at_message(patch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt a run when its journal, of this run, has so many messages."""
    message = Journal.message

    def counted(journal: Journal, *told: Any, **more: Any) -> None:
        message(journal, *told, **more)
        if sum("bytes" in event for event in event_records(journal._path)) == number:
            raise KeyboardInterrupt

    patch.setattr(Journal, "message", counted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fleet", ["plain", pytest.param("masked", marks=pytest.mark.slow)], indirect=True
)
def test_run_that_was_interrupted_at_every_message(fleet: Fleet, whole: Whole, tmp_path: Path):
    """One run, stopped at its first message, then at the next that is new, and so on."""
    assert whole.summary.traffic.resent_bytes == 0
    path, stops = tmp_path / "stopped", 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            seen = {_key(event) for event in _messages(path)}
            _stop_at_new(patch, seen)
            try:
                summary = customize(fleet, path, resume=True)
            except KeyboardInterrupt:
                stops += 1
                continue
        break
    assert stops == len(_messages(whole.path)) > 20
    assert _methods(summary.traffic) == _methods(whole.summary.traffic)
    again = sum(event["bytes"] for event in _messages(path))
    method = whole.summary.traffic.cloud_edge_bytes + whole.summary.traffic.edge_device_bytes
    assert summary.traffic.resent_bytes == again - method > method
    assert models_of(path) == models_of(whole.path)


def _messages(path: Path) -> list[dict[str, object]]:
    return [event for event in event_records(path / "events.jsonl") if "bytes" in event]


def _key(event: dict[str, object]) -> tuple[object, ...]:
    return event["from"], event["to"], event["type"], event["occasion"]


def _stop_at_new(patch: pytest.MonkeyPatch, seen: set[tuple[object, ...]]) -> None:
    """Interrupt a run right after the first message that it had not sent before."""
    message = Journal.message

    def watched(journal: Journal, *told: Any, **more: Any) -> None:
        message(journal, *told, **more)
        sender, receiver, kind, _ = told
        if (sender, receiver, kind, more["occasion"]) not in seen:
            raise KeyboardInterrupt

    patch.setattr(Journal, "message", watched)


@pytest.mark.slow
def test_runs_that_were_interrupted_once_at_each_message(
    fleet: Fleet, whole: Whole, tmp_path: Path
):
    for number in range(1, 1 + len(_messages(whole.path))):
        path = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            _stop_at_message(patch, number)
            with pytest.raises(KeyboardInterrupt):
                customize(fleet, path)
        summary = customize(fleet, path, resume=True)
        assert _methods(summary.traffic) == _methods(whole.summary.traffic), number
        assert summary.traffic.resent_bytes > 0
        assert models_of(path) == models_of(whole.path), number


def test_what_was_refused_and_asked_again_counts_once(
    fleet: Fleet, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a masked round the others are asked again too, under a new nonce."""
    handle = DeviceClient.handle

    def refuses(device: DeviceClient, message: Message) -> Message:
        if isinstance(message, Start) and message.round == 1:
            raise ProtocolError("the battery is empty")
        return handle(device, message)

    with monkeypatch.context() as patch:
        patch.setattr(DeviceClient, "handle", refuses)
        with pytest.raises(QuorumError):
            customize(fleet, tmp_path / "run")
    summary = customize(fleet, tmp_path / "run", resume=True)
    assert _methods(summary.traffic) == _methods(whole.summary.traffic)
    assert summary.traffic.resent_bytes > 0


# --- a finished run ---------------------------------------------------------------------------


def test_finished_run_is_left_as_it_is(finished, monkeypatch: pytest.MonkeyPatch):
    """It is not even computed what there would be to do; also over a network, from anywhere."""
    before = _files(finished.path)

    def connect(*_: object) -> None:
        raise AssertionError

    for others in ({}, {"connect": connect}):
        again = customize(finished.fleet, finished.path, resume=True, **others)
        assert again == finished.summary
    told = CliRunner().invoke(
        app,
        ["run", str(finished.path / "fleet.yaml"), "--out", str(finished.path), "--resume"],
    )
    assert told.exit_code == 0, told.output
    assert "sent again" not in told.output
    assert _files(finished.path) == before


def test_finished_run_of_another_fleet_is_refused(finished, tiny: Callable[..., Fleet]):
    before = _files(finished.path)
    with pytest.raises(RunError, match="another fleet or seed"):
        customize(tiny(seed=9), finished.path, resume=True)
    assert _files(finished.path) == before


def test_changed_model_of_a_finished_run_is_told_and_left_alone(
    finished, prepared: Path, caplog: pytest.LogCaptureFixture
):
    summary = customize(finished.fleet, prepared, resume=True)
    model = prepared / "devices" / "cam-2" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-3] ^= 1
    model.write_bytes(content)
    before = _files(prepared)
    assert customize(finished.fleet, prepared, resume=True) == summary
    assert _files(prepared) == before
    assert f"{model} is not as the run left it" in caplog.text
    # A run that is not finished makes it again; figures stay as they were measured.
    (prepared / "summary.json").unlink()
    again = customize(finished.fleet, prepared, resume=True)
    assert models_of(prepared) == finished.models
    assert _methods(again.traffic) == _methods(summary.traffic)
    assert again.devices == summary.devices


# --- what is sent again is told ---------------------------------------------------------------


def test_resent_bytes_stand_in_summary_terminal_and_report(
    finished, prepared: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(KeyboardInterrupt):
        customize(finished.fleet, prepared, resume=True, observer=StopAt("cam-1", "round 2"))
    monkeypatch.undo()
    arguments = ["run", str(prepared / "fleet.yaml"), "--out", str(prepared), "--resume"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert Summary.read(prepared / "summary.json").traffic.resent_bytes > 0
    assert "sent again, and not counted above: " in told.output
    assert (
        "were sent again after interruptions or failures" in (prepared / "report.html").read_text()
    )


# --- two at a time ----------------------------------------------------------------------------


def test_second_run_in_the_same_directory_is_refused(finished, prepared: Path):
    before = _files(prepared)
    with held(prepared), pytest.raises(RunError, match=rf"{prepared} is in use by process \d+"):
        customize(finished.fleet, prepared, resume=True)
    assert _files(prepared) == before
    assert not (prepared / LOCK).exists()
