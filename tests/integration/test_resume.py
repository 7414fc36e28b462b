"""A run that was stopped goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.device.client import DeviceClient
from acme_fleet.errors import RunError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import ReportRequest
from acme_fleet.pipeline import customize
from acme_fleet.runs.journal import Observer
from acme_fleet.runs.summary import Summary
from event_records import event_records


@dataclass
class StopAt(Observer):
    """Watches a run and stops it at a stage: at its beginning, in the middle, or at its end."""

    actor: str
    stage_name: str
    moment: str = "begin"
    stop: Callable[[], None] | None = None
    stopped: bool = False

    def plan(self, expected: object, earlier: object = None) -> None:
        pass

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        moment = "begin" if done == 0 else "end" if done == total else "middle"
        if (actor, name, moment) == (self.actor, self.stage_name, self.moment):
            self.stopped = True
            if self.stop is not None:
                self.stop()
            raise KeyboardInterrupt


def _stop(fleet: Fleet, path: Path, point: StopAt, *, resume: bool = False) -> None:
    with pytest.raises(KeyboardInterrupt):
        customize(fleet, path, resume=resume, observer=point)
    assert point.stopped
    assert not (path / "summary.json").exists()


def _outcome(summary: Summary) -> list[dict[str, Any]]:
    """Everything about the devices but measured seconds."""
    return [device.model_dump(exclude={"latency_s"}) for device in summary.devices]


def _models(path: Path) -> dict[str, bytes]:
    files = path.glob("devices/*/model.safetensors")
    return {file.parent.name: file.read_bytes() for file in files}


def _stages(path: Path) -> Counter[tuple[str, str]]:
    """The count of each actor's finished stages."""
    events = event_records(path / "events.jsonl")
    return Counter((event["actor"], event["stage"]) for event in events if "stage" in event)


def _check_equal(finished, path: Path, summary: Summary) -> None:
    assert _models(path) == finished.models
    assert _outcome(summary) == _outcome(finished.summary)
    told, known = ([c.model_dump() for c in s.clusters] for s in (summary, finished.summary))
    assert told == known
    told, known = (
        s.reference.model_dump(exclude={"latency_s"}) for s in (summary, finished.summary)
    )
    assert told == known
    assert (path / "report.html").exists()


def test_run_stopped_among_its_devices_equals_an_uninterrupted_one(finished, prepared: Path):
    """Nothing is trained twice: a device finds on its disk what it had trained."""
    for actor, stage in (("cam-2", "round 2"), ("south", "similarity"), ("badge-2", "final model")):
        _stop(finished.fleet, prepared, StopAt(actor, stage), resume=True)
        assert (actor, stage) not in _stages(prepared)
    summary = customize(finished.fleet, prepared, resume=True)
    _check_equal(finished, prepared, summary)
    assert _stages(prepared) == _stages(finished.path)


@pytest.mark.slow
def test_run_that_is_stopped_again_and_again(finished, tmp_path: Path):
    path, first = tmp_path / "run", True
    for actor, stage, moment in (
        ("cloud", "reference", "middle"),
        ("cloud", "width-elastic", "middle"),
        ("cloud", "candidate losses", "begin"),
        ("cloud", "candidate losses", "middle"),
        ("north", "header search", "begin"),
        ("north", "header search", "middle"),
        ("cam-1", "round 1", "begin"),
        ("cam-1", "round 3", "end"),
        ("cam-2", "fine-tuning", "begin"),
        ("south", "header search", "end"),
        ("badge-1", "final model", "end"),
    ):
        _stop(finished.fleet, path, StopAt(actor, stage, moment), resume=not first)
        first = False
        assert moment == "end" or (actor, stage) not in _stages(path)
    summary = customize(finished.fleet, path, resume=True)
    _check_equal(finished, path, summary)
    assert _stages(path).keys() == _stages(finished.path).keys()
    once = {key for key, count in _stages(path).items() if count == 1}
    assert {("cloud", stage) for stage in ("reference", "width-elastic", "elastic")} <= once
    assert {("cloud", "candidate losses"), ("north", "header search"), ("cam-2", "round 3")} <= once


def test_no_thread_works_on_after_an_interruption(finished, prepared: Path):
    _stop(finished.fleet, prepared, StopAt("cam-1", "round 1"), resume=True)
    for thread in threading.enumerate():
        if thread.name.startswith(("cloud", "north", "south")):
            thread.join(timeout=60)
            assert not thread.is_alive()
    stages = _stages(prepared)
    assert ("cam-2", "round 1") not in stages
    assert ("south", "similarity") not in stages


_KILLED = """
import sys
sys.path.append("..")  # the folder of all tests
import torch
import acme_fleet
from acme_fleet.pipeline import customize
from test_resume import StopAt, kill_myself

torch.set_num_threads(1)
fleet = acme_fleet.Fleet.from_yaml(sys.argv[1])
customize(
    fleet, sys.argv[2], resume=True, observer=StopAt("badge-1", "round 2", "end", kill_myself)
)
"""


def kill_myself() -> None:
    """As the kernel does when memory is short: nothing can be tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_killed_run_is_resumed(finished, prepared: Path):
    told = subprocess.run(
        [sys.executable, "-c", _KILLED, prepared / "fleet.yaml", prepared],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert told.returncode == -signal.SIGKILL, told.stderr.decode()
    before = _stages(prepared)
    assert before["badge-2", "round 1"] == 1
    with (prepared / "events.jsonl").open("a") as file:
        file.write('{"time": "2025-')  # at worst it happens within a line
    summary = customize(finished.fleet, prepared, resume=True)
    _check_equal(finished, prepared, summary)
    stages = _stages(prepared)
    assert {key for key, count in stages.items() if count > 1} <= {("badge-1", "round 2")}
    assert stages["badge-2", "round 3"] == 1


def test_rounds_that_had_converged_are_not_gone_on_with(
    tiny: Callable[..., Fleet], prepared: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without pruning nothing changes after the first round; that is remembered over a stop."""
    fleet = tiny(**{"personalization.prune_share": 0.0})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    _stop(fleet, prepared, StopAt("cam-1", "fine-tuning"), resume=True)
    customize(fleet, prepared, resume=True)
    rounds = {stage for _, stage in _stages(prepared) if stage.startswith("round")}
    assert rounds == {"round 1"}


def test_finished_run_can_be_resumed_and_repeats_nothing(finished, tmp_path: Path, prepared: Path):
    first = customize(finished.fleet, prepared, resume=True)
    before = _stages(prepared)
    again = customize(finished.fleet, prepared, resume=True)
    assert _stages(prepared) == before
    assert _outcome(again) == _outcome(first)
    _check_equal(finished, prepared, again)


def test_run_of_another_fleet_is_left_as_it_was(
    finished, tiny: Callable[..., Fleet], prepared: Path
):
    before = {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()}
    for fleet in (tiny(seed=4), tiny(**{"personalization.rounds": 4})):
        with pytest.raises(RunError, match="another fleet or seed"):
            customize(fleet, prepared, resume=True)
    assert {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()} == before


def test_command_that_an_interruption_tells_can_be_typed(
    finished, prepared: Path, monkeypatch: pytest.MonkeyPatch
):
    handle = DeviceClient.handle

    def interrupted(device: DeviceClient, message: Message) -> Message:
        if isinstance(message, ReportRequest):
            raise KeyboardInterrupt
        return handle(device, message)

    arguments = ["run", str(prepared / "fleet.yaml"), "--out", str(prepared), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(DeviceClient, "handle", interrupted)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert f"go on: acme {' '.join(arguments)}" in result.stderr
    result = CliRunner().invoke(app, result.stderr.split("go on: acme ")[1].split())
    assert result.exit_code == 0, result.output
    assert _models(prepared) == finished.models
