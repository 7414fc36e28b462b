"""The end of a command: by a signal, and quickly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.cli.signals import ENDING, Stopped, exit_code, heed, stop_explained
from acme_fleet.network.hosts.supervisor import Service, keep_running
from acme_fleet.training import pretraining
from acme_research import cli as research


@pytest.fixture
def heard() -> Iterator[list[Stopped]]:
    """Signals are heeded as the console's entry point has it."""
    before, seen = {number: signal.getsignal(number) for number in ENDING}, []
    heed(seen)
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_each_signal_ends_a_command_with_a_code_of_its_own(number: int, heard: list[Stopped]):
    with pytest.raises(KeyboardInterrupt) as stop:
        signal.raise_signal(number)
    assert exit_code(stop.value) == 128 + number
    assert [each.number for each in heard] == [number]


def test_interrupt_of_a_library_is_ctrl_c():
    assert exit_code(KeyboardInterrupt()) == 130


def test_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    kept = {number: signal.getsignal(number) for number in ENDING}
    try:
        heed([])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGHUP, before)


def test_pretraining_says_how_to_go_on(
    heard: list[Stopped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3)

    def train(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pretraining, "train_averaged", train)
    command = ["pretrain", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "model")]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 143, told.output
    assert told.stderr.splitlines()[-1] == (
        f"interrupted; what is finished is in {tmp_path / 'model'}; the same command goes on"
    )


def test_advice_is_the_last_line(capsys: pytest.CaptureFixture[str]):
    import typer

    with pytest.raises(typer.Exit) as end, stop_explained("go on"):
        raise Stopped(signal.SIGHUP)
    assert end.value.exit_code == 129
    assert capsys.readouterr().err == "interrupted; go on\n"


def test_host_ends_by_sighup_and_gives_the_signals_back(heard: list[Stopped]):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    service = Service("part", command, os.environ)

    def say(line: str) -> None:
        if line == "up":
            os.kill(os.getpid(), signal.SIGHUP)

    handler = signal.getsignal(signal.SIGHUP)
    keep_running([service], say)
    assert service.process is not None
    assert service.process.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) is handler
    assert not heard


_STORY = """
import sys, time
TELL
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_story_hears_of_a_signal_that_its_terminal_did_not_send(
    heard: list[Stopped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    story, start = tmp_path / "story.py", subprocess.Popen
    story.write_text(_STORY.replace("TELL", _tell_parent()))
    monkeypatch.setattr(research.subprocess, "Popen", lambda _: start([sys.executable, str(story)]))
    assert research.run_story("fig9", []) == 130
    assert [each.number for each in heard] == [signal.SIGTERM]


def _tell_parent() -> str:
    """The story's first act: its parent, and it alone, is told to end."""
    return f"import os; os.kill(os.getppid(), {int(signal.SIGTERM)})"


_COMMAND = [sys.executable, "-m", "acme_fleet.cli"]


def _finished(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_entry_point_hands_the_exit_code_on(tmp_path: Path):
    assert _finished("--version").returncode == 0
    none = _finished("init", tmp_path / "nowhere" / "fleet.yaml")
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)


_LINGERING = """
import atexit, sys, time, threading
import acme_fleet.cli.__main__ as entry

class Slow:
    def __del__(self):
        time.sleep(5)

def app():
    sys.modules["kept"] = Slow()
    threading.Thread(target=time.sleep, args=(5,)).start()
    print("done")
    raise SystemExit(3)

atexit.register(lambda: print("at exit"))
entry.app = app
entry.main()
"""


def test_nothing_is_taken_apart_at_the_end():
    """Exit functions run and output is complete; objects and threads are not waited for."""
    begun = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", _LINGERING], capture_output=True, text=True, check=False
    )
    assert told.returncode == 3, told.stderr
    assert told.stdout == "done\nat exit\n"
    assert time.monotonic() - begun < 4


_STOPPED = """
import os, signal
import acme_fleet.cli.__main__ as entry

def app():
    {body}

entry.app = app
entry.main()
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("os.kill(os.getpid(), signal.SIGHUP)", 129),
        ("os.kill(os.getpid(), signal.SIGINT)", 130),
        ("raise RuntimeError('a bug')", 70),
    ],
)
def test_command_that_said_nothing_of_its_signal(body: str, code: int):
    told = subprocess.run(
        [sys.executable, "-c", _STOPPED.format(body=body)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == code
    assert ("a bug" in told.stderr) == (code == 70)


def test_an_early_signal_is_told_before_anything_is_imported() -> None:
    """A stand-in for the command line sends the signal while it is imported."""
    early = """
import os, signal, sys, types
class Importing:
    def find_spec(self, name, *_):
        if name.startswith("acme_fleet.cli"):
            os.kill(os.getpid(), int(sys.argv[1]))
            signal.pause()
sys.meta_path.insert(0, Importing())
from acme_fleet.__main__ import main
main()
"""
    for number in (signal.SIGTERM, signal.SIGINT):
        ended = subprocess.run(
            [sys.executable, "-c", early, str(int(number))], capture_output=True, text=True
        )
        assert ended.returncode == 128 + number
        assert ended.stderr.splitlines()[-1] == "interrupted"
