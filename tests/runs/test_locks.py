"""A folder is held by one process at a time, and given back however the process ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.errors import RunError, WriteError
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.locks import LOCK, held, holder
from acme_fleet_runtime import locks

_HOLDER = """
import sys, time
from pathlib import Path
from acme_fleet.runs.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kill", [True, False])
def test_another_process_is_named_until_it_ends(kill: bool, tmp_path: Path):
    folder = tmp_path / "run"
    with _holder(folder) as process:
        with pytest.raises(RunError, match=rf"{folder} is in use by process {process.pid};"):
            held(folder).__enter__()
        process.send_signal(signal.SIGKILL) if kill else process.communicate("")
        process.wait()
    assert (folder / LOCK).exists() == kill
    with held(folder):
        assert (folder / LOCK).read_text() == str(os.getpid())
    assert list(folder.iterdir()) == []


def test_two_calls_of_one_process(tmp_path: Path):
    found: list[Exception] = []

    def second() -> None:
        try:
            with held(tmp_path):
                pass
        except RunError as error:
            found.append(error)

    with held(tmp_path):
        for run in (second, threading.Thread(target=second)):
            run() if callable(run) else (run.start(), run.join())
        assert len(found) == 2
        assert all(f"in use by process {os.getpid()}" in str(error) for error in found)
    second()
    assert len(found) == 2


def test_lock_is_given_back_after_an_error(tmp_path: Path):
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    with held(tmp_path):
        pass


def test_one_at_a_time_however_many_try(tmp_path: Path):
    """Also while others remove the file that bears the lock."""
    inside, most, turns = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(300):
            try:
                with held(tmp_path):
                    inside += 1
                    most = max(most, inside)
                    turns += 1
                    inside -= 1
            except RunError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert turns > 1


def test_child_processes_do_not_keep_the_lock(tmp_path: Path):
    with held(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        with held(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("trouble", [errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_file_system_without_locks_is_told(
    trouble: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """As some network file systems are; and a system without the module."""

    def flock(*_: Any) -> None:
        raise OSError(trouble, "")

    if trouble is None:
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
    with held(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert f"{tmp_path} cannot be locked" in caplog.text
    assert "do not let two processes work there" in caplog.text


def test_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="below: a part of the path is not a folder"):
        held(tmp_path / "file" / "below").__enter__()
    with pytest.raises(WriteError, match="the name is too long"):
        held(tmp_path / ("y" * 300)).__enter__()
    assert (tmp_path / "file").read_bytes() == b""


def test_who_holds_a_folder(tmp_path: Path) -> None:
    assert holder(tmp_path / LOCK) is None
    with held(tmp_path):
        assert holder(tmp_path / LOCK) is None  # not another process
    with _holder(tmp_path) as process:
        assert holder(tmp_path / LOCK) == str(process.pid)
        begun = RunDirectory(tmp_path)
        with pytest.raises(RunError, match=rf"not finished: process {process.pid} is at work on"):
            begun.finished()
        process.communicate("")
    (tmp_path / LOCK).write_text("1")  # of a process that was killed
    assert holder(tmp_path / LOCK) is None
