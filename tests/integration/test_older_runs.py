"""Run directories of versions whose journals have no tiers: read, continued, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_resume import StopAt
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.device.state import DeviceFolder, changed_files, kept_answers
from acme_fleet.errors import DamagedError
from acme_fleet.models.parts import Parts
from acme_fleet.pipeline import customize
from acme_fleet.report.page.html import write_report
from acme_fleet.runs.events import FigureEvent
from acme_fleet.runs.journal import read_journal
from acme_fleet.runs.sealed import write_sealed_json
from acme_fleet.runs.summary import Summary
from conftest import models_of
from event_records import event_records

_NEW = ("tier", "direction")
_OLD_DEVICE = (
    *("name", "cluster", "capacity_bytes", "size_bytes", "params", "accuracy_coarse", "accuracy"),
    *("accuracy_linear", "accuracy_probe", "accuracy_probe_averaged", "test_samples", "latency_s"),
    *("neurons_coarse", "neurons", "raw_data_bytes"),
)
_UNKNOWN = {
    "accuracy_reference": None,
    "train_samples": 0,
    "validation_samples": 0,
    "classes": {},
}
"""Of devices in an older version's summary."""


def _make_older(events: Path) -> None:
    """Write a journal as it was before: no tier, direction or figure, and no count of lines."""
    told = [event for event in event_records(events) if "figure" not in event]
    lines = [{k: v for k, v in event.items() if k not in _NEW} for event in told]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    events.with_suffix(".count").unlink(missing_ok=True)


@pytest.fixture
def older(finished, tmp_path: Path) -> Path:
    """The finished run in the files of an older version."""
    path = tmp_path / "older"
    shutil.copytree(finished.path, path)
    _make_older(path / "events.jsonl")
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    del summary["checksum"]
    summary["devices"] = [{key: each[key] for key in _OLD_DEVICE} for each in summary["devices"]]
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_finished_run_is_read_as_one_of_today(
    finished, older: Path, tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    quick.undo()
    known = [device.model_copy(update=_UNKNOWN) for device in finished.summary.devices]
    summary = finished.summary.model_copy(update={"devices": known})
    assert Summary.read(older / "summary.json") == summary
    journal = read_journal(finished.path / "events.jsonl")
    events = [event for event in journal.events if not isinstance(event, FigureEvent)]
    assert read_journal(older / "events.jsonl") == (events, journal.damaged)
    for command in ("report", "explain"):
        told = CliRunner().invoke(app, [command, str(older)])
        assert told.exit_code == 0, told.output
    write_report(summary, events, tmp_path / "same.html")
    assert (older / "report.html").read_text() == (tmp_path / "same.html").read_text()
    assert customize(finished.fleet, older, resume=True) == summary


def test_stopped_run_goes_on_and_counts_all_its_messages(finished, prepared: Path) -> None:
    _stopped(finished.fleet, prepared)
    _make_older(prepared / "events.jsonl")
    summary = customize(finished.fleet, prepared, resume=True)
    assert models_of(prepared) == finished.models
    known = finished.summary.traffic
    # The measured latency in a report varies by a few digits.
    assert summary.traffic.down_bytes == known.down_bytes
    assert summary.traffic.up_bytes == pytest.approx(known.up_bytes, abs=6 * 32)
    assert summary.traffic.resent_bytes > 0
    assert summary.damaged_events == 0


def test_state_without_the_evaluation_is_refused_with_what_to_do(finished, prepared: Path) -> None:
    """So it was before tasks had evaluations of their own."""
    _stopped(finished.fleet, prepared)
    work = Parts(prepared / "devices" / "cam-1" / "state" / "work.safetensors")
    tensors, about = work.read("pruned-0")
    known = {name: told for name, told in about.items() if name != "evaluation"}
    work.write({"pruned-0": (tensors, known)}, gone=["trained-1"])
    with pytest.raises(DamagedError) as refusal:
        customize(finished.fleet, prepared, resume=True)
    told = str(refusal.value)
    assert told.startswith(f"cannot read {work.path}: it has no evaluation: an older version")
    assert "run again with another --out" in told


def test_end_of_a_devices_work_is_read_from_a_file_of_its_own(finished, tmp_path: Path) -> None:
    known = finished.path / "devices" / "cam-1"
    report, answers = DeviceFolder(known).report(), kept_answers(known)
    assert report is not None
    path = shutil.copytree(known, tmp_path / "cam-1")
    work = Parts(path / "state" / "work.safetensors")
    _, content = work.read("finished")
    work.path.unlink()
    assert DeviceFolder(path).report() is None
    assert changed_files(path) is None
    write_sealed_json(path / "state" / "finished.json", content, private=True)
    assert DeviceFolder(path).report() == report
    assert kept_answers(path) == answers
    assert changed_files(path) == []
    (path / "model.safetensors").write_bytes(b"")
    assert changed_files(path) == ["model.safetensors"]


def _stopped(fleet: Fleet, path: Path) -> None:
    """Stop a run while a device works in its second round."""
    with pytest.raises(KeyboardInterrupt):
        customize(fleet, path, resume=True, observer=StopAt("cam-1", "round 2"))
