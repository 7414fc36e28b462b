"""A file that was written once and is not there any more is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_fleet.errors import DamagedError
from acme_fleet.runs.journal import Journal, read_journal
from acme_fleet.runs.ledger import LEDGER, forget, note, require


def test_a_file_is_required_once_it_was_written(tmp_path: Path) -> None:
    assert not require(tmp_path / "a")  # never written
    for name in ("a", "b"):
        (tmp_path / name).touch()
        note(tmp_path, [name])
        note(tmp_path, [name])
    assert (tmp_path / LEDGER).read_text().split() == ["a", "b"]
    assert require(tmp_path / "a")
    (tmp_path / "a").unlink()
    with pytest.raises(DamagedError, match="a: it was written once, and is not there any more"):
        require(tmp_path / "a")
    forget(tmp_path)
    assert not require(tmp_path / "a")


def test_half_a_line_of_the_list_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text("\npruned-0.safe")
    note(tmp_path, ["pruned-0.safetensors"])
    with pytest.raises(DamagedError):
        require(tmp_path / "pruned-0.safetensors")


def test_lines_that_were_cut_off_a_journal_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    for number in range(5):
        journal.fault("cam-1", "device", "cam-1", f"fault {number}")
    assert read_journal(path).damaged == {}
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert read_journal(path).damaged == {3: "lines that are missing: 3"}
    for _ in range(2):
        Journal(path)
    faults = [event.record()["fault"] for event in read_journal(path).events]
    assert faults[2:] == ["lines of events.jsonl that are missing: 3; they are in no sum"]
    (tmp_path / "events.count").write_text("no number")
    assert read_journal(path).damaged == {}  # as an older version's, which counted none
