"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from acme_fleet.errors import WriteError
from acme_fleet.runs.atomic import remove, remove_partial, replacing


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
            raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(WriteError, match=f"cannot write {path}: the disk is full"):
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


@pytest.mark.parametrize(
    ("private", "file_mode", "folder_mode"), [(0, 0o640, 0o750), (1, 384, 448)]
)
def test_modes_are_those_of_the_umask_or_private(
    tmp_path: Path, private: int, file_mode: int, folder_mode: int
):
    """Also where a library puts a file of its own in the place of the partial one."""
    path = tmp_path / "new" / "state"
    before = os.umask(0o027)
    try:
        with replacing(path, private=bool(private)) as file:
            (tmp_path / "own").touch(mode=0o600)
            (tmp_path / "own").replace(file)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == file_mode
    assert path.parent.stat().st_mode & 0o777 == folder_mode


def test_two_writers_do_not_share_a_partial_file(tmp_path: Path):
    path = tmp_path / "state"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_partial_files_of_the_dead_are_removed_and_no_others(tmp_path: Path):
    with replacing(tmp_path / "a" / "state") as file:
        file.write_text("whole")
    others = [tmp_path / name for name in ("a.partial", ".a.partial", "a/.tmp", "a/.tmpfoo-bar")]
    stale = [file, tmp_path / "a" / ".tmpA1b2C3"]
    for path in (*others, *stale):
        path.touch()
    remove_partial(tmp_path)
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in stale)


def test_what_is_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="state: a part of the path is not a folder"):  # noqa: SIM117
        with replacing(tmp_path / "file" / "state"):
            raise AssertionError
    with pytest.raises(WriteError, match="folder: it is a folder"), replacing(tmp_path / "folder"):
        pass
    with pytest.raises(WriteError, match="folder: "):
        remove(tmp_path / "folder")
    remove(tmp_path / "nothing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
