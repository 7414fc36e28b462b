"""No traceback reaches a user: every failure is a line of ours with a documented exit code."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import EXAMPLE, app
from acme_fleet.errors import FleetError
from acme_fleet.failures import BUG, DONE, IN_PART, INTERRUPTED, WRONG_INPUT, explain, say

_ACME = [sys.executable, "-m", "acme_fleet"]


def _process(body: str, **environment: str) -> subprocess.CompletedProcess:
    """A command of a process of its own, which fails as ``body`` says."""
    script = f"import sys\nfrom acme_fleet.failures import own_process, say\n{body}\n"
    script += "sys.exit(own_process(command))"
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture(autouse=True)
def _private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks of these tests do not stay in the machine's folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FleetError("fleet.yaml: a"), WRONG_INPUT, "error: fleet.yaml: a"),
        (FleetError("a\x1b[2Jb\nc"), WRONG_INPUT, "error: a?[2Jb\nc"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (MemoryError(), WRONG_INPUT, "error: there is not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            WRONG_INPUT,
            "error: there is not enough memory",
        ),
        (OSError(28, "No space", "a.bin"), WRONG_INPUT, "error: a.bin: the disk is full"),
        (PermissionError(13, "x", "/a"), WRONG_INPUT, "error: /a: permission denied"),
        (OSError(30, "x"), WRONG_INPUT, "error: the file system is read-only"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_bug(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
):
    assert explain(error) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), ValueError("a\nb\x00")])
def test_a_bug_is_two_lines_and_a_private_file(
    error: Exception, capsys: pytest.CaptureFixture[str]
):
    try:
        raise error
    except type(error):
        assert explain(error) == BUG
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: a bug of acme-fleet: {type(error).__name__}: ")
    path = Path(second.rpartition(" ")[2])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "Traceback (most recent call last)" in path.read_text()


def test_what_a_signal_does_to_a_library_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("acme_fleet.failures.STOPS", [KeyboardInterrupt()])
    assert explain(RecursionError("in an import that was interrupted")) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_where_no_file_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert explain(KeyError("x")) == BUG
    assert "could not be written: no such file" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("raised", [KeyError("x"), KeyboardInterrupt(), FleetError("x")])
def test_any_command_is_guarded(raised: BaseException, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise raised

    added = [SimpleNamespace(name="added", load=fail)]
    monkeypatch.setattr("acme_fleet.cli.added.entry_points", lambda group: added)
    told = CliRunner().invoke(app, ["added"])
    assert told.exit_code == explain(raised)
    assert "Traceback" not in told.output


def test_own_process_keeps_exit_codes():
    script = "def command(): raise SystemExit({})"
    for given, expected in ((None, DONE), (3, 3), ("'told'", IN_PART)):
        assert _process(script.format(given)).returncode == expected


_LATE = {
    "a thread": "import threading\ndef command():\n"
    "    thread = threading.Thread(target=lambda: {}['x'])\n    thread.start(); thread.join()",
    "a thread of a pool": "from concurrent.futures import ThreadPoolExecutor\ndef command():\n"
    "    with ThreadPoolExecutor() as pool: pool.submit(lambda: {}['x']).result()",
    "the end of the process": "import atexit\natexit.register(lambda: {}['x'])\n"
    "def command(): pass",
    "a destructor": "class A:\n    def __del__(self): {}['x']\ndef command(): A()",
    "logging": "import logging\nclass Stream:\n    def write(self, text): {}['x']\n"
    "    def flush(self): pass\n"
    "def command(): logging.StreamHandler(Stream()).handle(logging.makeLogRecord({}))",
    "recursion": "def command(): command()",
    "a group": "def command(): raise ExceptionGroup('several', [KeyError('x')])",
}


@pytest.mark.parametrize("body", _LATE.values(), ids=_LATE)
def test_no_traceback_from(body: str, tmp_path: Path):
    told = _process(body, TMPDIR=str(tmp_path))
    assert "Traceback" not in told.stderr
    assert told.returncode in (DONE, BUG)
    if told.returncode == BUG:
        assert told.stderr.splitlines()[-1].startswith("please report it to the project")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
@pytest.mark.parametrize("arguments", [["--help"], ["check", str(EXAMPLE)], ["predict", "--help"]])
def test_output_that_is_not_utf_8(
    encoding: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", shown)
    with pytest.raises(SystemExit) as end:
        app(arguments)
    assert end.value.code == 0
    shown.flush()
    assert shown.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_process_whose_output_is_not_utf_8():
    told = subprocess.run(
        [*_ACME, "--help"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout.decode("ascii")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "| true"])
def test_output_that_takes_nothing(closed: str, tmp_path: Path):
    line = f"{sys.executable} -m acme_fleet --version {closed}"
    told = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False)
    assert told.returncode == {">/dev/full": WRONG_INPUT, "| true": IN_PART}.get(closed, DONE)
    assert b"Traceback" not in told.stderr
    assert told.stderr in (b"", b"error: the disk is full\n")


def test_interrupt_while_libraries_are_imported():
    """Torch alone takes seconds to import: the signal comes while it is."""
    script = (
        "import builtins, os, signal\nfrom acme_fleet.__main__ import main\n"
        "kept = builtins.__import__\n"
        "def slow(name, *rest):\n"
        "    if name == 'torch': builtins.__import__ = kept; os.kill(os.getpid(), signal.SIGINT)\n"
        "    return kept(name, *rest)\n"
        "builtins.__import__ = slow\n"
        f"import sys; sys.argv = ['acme', 'check', {str(EXAMPLE)!r}]\nmain()"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (INTERRUPTED, b"interrupted\n")


def test_a_line_leads_no_terminal(capsys: pytest.CaptureFixture[str]):
    say("a\x1b[2Jb\rc\u202ed\udce9\te\nf\u3000\u200dg")
    assert capsys.readouterr().out == "a?[2Jb?c?d?\te\nf\u3000\u200dg\n"


# --- every command with what no command can use -------------------------------------------------

_COMMANDS = {
    "demo": ["demo", "--out", "{}"],
    "init": ["init", "{}"],
    "check": ["check", "{}"],
    "run": ["run", "{}", "--out", "new"],
    "run --out": ["run", "none.yaml", "--out", "{}"],
    "run --resume": ["run", "none.yaml", "--out", "{}", "--resume"],
    "report": ["report", "{}"],
    "predict": ["predict", "{}"],
    "predict --device": ["predict", "{}", "--device", "cam"],
    "explain": ["explain", "{}"],
    "explain --device": ["explain", "{}", "--device", "cam"],
    "profile": ["profile", "{}"],
    "profile --meter": ["profile", "none", "--meter", "{}"],
    "up": ["up", "cloud", "--config", "{}"],
    "keys init": ["keys", "init", "--host", "cloud=localhost", "--keys", "keys", "--fleet", "{}"],
    "keys device": ["keys", "device", "a", "--keys", "{}"],
    "pretrain --data": ["pretrain", "--data", "{}", "--out", "new"],
    "pretrain --out": ["pretrain", "--data", "none", "--out", "{}"],
    "reproduce": ["reproduce", "{}"],
}
_LATER: dict[str, list[str]] = {
    "init --images": ["init", "new.yaml", "--images", "{}"],
    "init --text": ["init", "new.yaml", "--text", "{}"],
    "init --devices": ["init", "new.yaml", "--template", "vision", "--devices", "{}"],
    "reference": ["reference", "{}", "--out", "new"],
    "update": ["update", "{}", "--fleet", str(EXAMPLE), "--out", "new"],
    "drift": ["drift", "{}", "--device", "cam", "--data", "none"],
    "export": ["export", "{}", "--out", "new"],
    "export --all": ["export", "{}", "--all"],
    "serve": ["serve", "{}"],
    "publish": ["publish", "{}", "--to", "site"],
    "publish --refresh": ["publish", "--to", "{}", "--refresh"],
    "pull": ["pull", "--from", "{}", "--device", "cam", "--to", "new", "--trust", "a" * 64],
    "pull --trust": ["pull", "--from", ".", "--device", "cam", "--to", "new", "--trust", "{}"],
    "rollback": ["rollback", "{}"],
    "keys show": ["keys", "show", "--keys", "{}"],
    "fleet list": ["fleet", "list", "--registry", "{}"],
    "distill plan": ["distill", "plan", "{}"],
    "distill ask": ["distill", "ask", "{}", "--out", "new"],
    "distill run": ["distill", "run", "{}", "--out", "new"],
    "distill report": ["distill", "report", "{}"],
    "distill deploy": ["distill", "deploy", "{}", "--out", "new"],
}
_USABLE = {("fleet list", "empty file")}
_PLACES: dict[str, Any] = {
    "missing": None,
    "empty file": b"",
    "binary file": bytes(range(256)) * 4,
    "text file": b"a: [b",
    "deep file": b"[" * 50_000,
    "not UTF-8": b"name: caf\xe9",
    "number of 5000 digits": b"seed: " + b"9" * 5000,
}
_FILE_NAMES = ["a\nb", "caf\udce9", "[/red]"]
_NAMES = [*_FILE_NAMES, "", "x" * 300, "a\0b", "/proc/self/mem", "/dev/null/x"]


def _refused(told: Any) -> None:
    assert told.exit_code in (IN_PART, WRONG_INPUT), told.output
    assert told.exception is None or isinstance(told.exception, SystemExit)
    assert "Traceback" not in told.output
    assert told.stderr.strip().splitlines()[-1].strip()


@pytest.mark.parametrize("place", [*_PLACES, "empty folder", "dangling link", "loop of links"])
@pytest.mark.parametrize("command", [*_COMMANDS, *_LATER])
def test_place_that_is_of_no_use(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "place"
    if place == "empty folder":
        path.mkdir()
    elif place == "dangling link":
        path.symlink_to("nowhere")
    elif place == "loop of links":
        path.symlink_to(path)
    elif (content := _PLACES[place]) is not None:
        path.write_bytes(content)
    if command in ("demo", "init") and place in ("missing", "empty folder", "dangling link"):
        return  # they can use it
    if (command, place) in _USABLE:
        return
    parts = (_COMMANDS | _LATER)[command]
    told = CliRunner().invoke(app, [part.format(path) for part in parts])
    _refused(told)


@pytest.mark.parametrize("option", ["--dataset", "--checkpoint", "--devices"])
def test_option_of_init_that_is_empty(option: str, tmp_path: Path):
    told = CliRunner().invoke(app, ["init", str(tmp_path / "new.yaml"), option, ""])
    _refused(told)
    assert f"{option} is empty" in told.stderr


@pytest.mark.parametrize(
    "command", [["distill", "probe", "--out"], ["profile", "x", "--device-file"]]
)
def test_a_result_that_could_not_be_written_is_not_measured(command: list[str]):
    told = CliRunner().invoke(app, [*command, "/dev/null/x"])
    _refused(told)
    assert told.stderr == "error: cannot write /dev/null/x: a part of the path is not a folder\n"


@pytest.mark.parametrize("name", _NAMES, ids=ascii)
@pytest.mark.parametrize("command", _COMMANDS)
def test_name_that_is_none(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if command == "demo" or (command == "init" and name in _FILE_NAMES):
        return  # they can use it
    told = CliRunner().invoke(app, [part.format(name) for part in _COMMANDS[command]])
    _refused(told)
