"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acme_fleet.files import replacing


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "new" / "state.json"
    with replacing(path) as file:
        file.write_text("old")
    with replacing(path) as file:
        file.write_text("n")
        assert path.read_text() == "old"
        file.write_text("new")
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]
    assert path.read_text() == "new"


def test_what_failed_leaves_nothing_but_the_old_file(tmp_path: Path):
    path = tmp_path / "state.json"
    path.write_text("old")

    def broken() -> None:
        with replacing(path) as file:
            file.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        broken()
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert path.read_text() == "old"


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise a power cut can leave an empty file under the name."""
    path, seen = tmp_path / "state.json", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.exists()))
    with replacing(path) as file:
        file.write_text("new")
    assert seen == [False]
    assert path.exists()
