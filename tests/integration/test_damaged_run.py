"""A finished run whose files were damaged: every command names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app

_COMMANDS = (["report"], ["explain"], ["explain", "--device", "cam-1"])
_CONTENTS = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "list": b"[1]",
    "number": b"1",
    "deep": b'{"a":' * 5_000,
    "deep list": b"[" * 5_000,
    "cut": None,
}


@pytest.fixture
def copied(finished, tmp_path: Path) -> Path:
    """The files that the commands read, without the state."""
    for name in ("fleet.yaml", "summary.json", "events.jsonl"):
        shutil.copy(finished.path / name, tmp_path)
    return tmp_path


def _change(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the summary as an older version would have written it: without a checksum."""
    summary = json.loads((run / "summary.json").read_text())
    summary.pop("checksum", None)
    change(summary)
    (run / "summary.json").write_text(json.dumps(summary))


def _told(command: list[str], run: Path) -> Any:
    told = CliRunner().invoke(app, [command[0], str(run), *command[1:]])
    assert told.exit_code in (0, 2), told.output
    assert "Traceback" not in told.output
    return told


@pytest.mark.parametrize("content", _CONTENTS.values(), ids=_CONTENTS)
@pytest.mark.parametrize("name", ["fleet.yaml", "summary.json"])
@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_damaged_document(copied: Path, command: list[str], name: str, content: bytes | None):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    told = _told(command, copied)
    if name == "summary.json" or command[0] == "explain":
        assert told.exit_code == 2
        assert str(copied / name) in told.stderr


@pytest.mark.parametrize("content", _CONTENTS.values(), ids=_CONTENTS)
def test_damaged_events(copied: Path, quick: pytest.MonkeyPatch, content: bytes | None):
    quick.undo()
    whole = (copied / "events.jsonl").read_bytes()
    (copied / "events.jsonl").write_bytes(whole[:-30] if content is None else content)
    _told(["report"], copied)


def _no_choice(summary: dict[str, Any]) -> None:
    for candidate in summary["clusters"][0]["candidates"]:
        candidate["chosen"] = False


def _put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(summary: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = summary
        for part in parents:
            place = place[part]
        place[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _no_choice,
        _put("devices", 0, "cluster", value="nowhere"),
        _put("devices", 0, "capacity_bytes", value=0),
        _put("devices", 0, "accuracy", value=float("nan")),
        _put("devices", 0, "accuracy", value=2.0),
        _put("devices", 0, "test_samples", value=-1),
        _put("devices", 0, "params", value=10**400),
        _put("reference", "size_bytes", value=0),
        _put("clusters", 0, "similarity", value=[[1.0]]),
        _put("clusters", 0, "candidates", value=[]),
        _put("clusters", 1, "name", value="north"),
        _put("clusters", 0, "candidates", 0, "loss", value=float("inf")),
    ],
)
def test_summary_that_contradicts_itself(copied: Path, change: Callable[[dict[str, Any]], None]):
    _change(copied, change)
    for command in _COMMANDS:
        told = _told(command, copied)
        assert told.exit_code == 2
        assert str(copied / "summary.json") in told.stderr
        assert "is of another fleet" not in told.stderr


def test_summary_of_another_fleet(copied: Path):
    _change(copied, _put("clusters", 0, "device_names", 1, value="cam-3"))
    for command in _COMMANDS[1:]:
        told = _told(command, copied)
        assert told.exit_code == 2
        assert "is of another fleet" in told.stderr


def test_names_that_are_markup_are_shown(copied: Path, quick: pytest.MonkeyPatch):
    """A report may be rebuilt from a directory that somebody else made."""
    quick.undo()
    _change(copied, lambda summary: summary["clusters"][0]["lost"].update({"[/red]<b>": "gone"}))
    assert _told(["report"], copied).exit_code == 0
    assert "[/red]&lt;b&gt;" in (copied / "report.html").read_text()


def test_results_of_a_device_that_no_fleet_can_name_are_refused(copied: Path):
    _change(copied, lambda summary: summary["devices"][0].update(name="[/red]<b>"))
    told = _told(["report"], copied)
    assert told.exit_code == 2
    assert str(copied / "summary.json") in told.stderr


def test_genotype_that_is_none(copied: Path):
    for genotype in ({}, {"blocks": []}, {"blocks": [{"inputs": "ab", "operations": [1, 2]}]}):
        _change(copied, _put("clusters", 0, "genotype", value=genotype))
        assert _told(["report"], copied).exit_code == 0
