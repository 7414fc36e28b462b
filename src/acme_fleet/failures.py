"""A failed process ends with one clear line, never with a traceback.

Exit codes: 0 all done, 1 done in part, 2 wrong input or no means (memory, disk, a file), 70 a bug
of acme-fleet, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from acme_fleet.errors import AcmeError
from acme_fleet.outside import reason

DONE, IN_PART, WRONG_INPUT, BUG, INTERRUPTED = 0, 1, 2, 70, 130
STOPS: list[KeyboardInterrupt] = []
"""Signals that asked this process to end; a library that one interrupts may raise any error."""
_LONGEST = 20_000  # characters of an error
# Control characters but line feed and tab, marks of direction, halves of surrogate pairs.
_MOVES = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SHORT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")  # RuntimeErrors of torch


def called() -> str:
    """The command as this process was called, such as ``.venv/bin/acme``, for lines to paste."""
    typed = Path(sys.argv[0])
    if typed.name != "acme" or shutil.which("acme") in (str(typed), str(typed.absolute())):
        return "acme"
    return shlex.quote(str(typed))


def say(text: str, *, error: bool = False) -> None:
    """Write a line, to standard error if it tells of one; a terminal cannot be led by it."""
    stream = sys.stderr if error else sys.stdout
    try:
        stream.write(_MOVES.sub("?", text) + "\n")
        stream.flush()
    except OSError:
        if not error:  # there is nowhere left to tell that standard error takes nothing
            raise


def explain(error: BaseException) -> int:
    """Tell what went wrong; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        say("interrupted", error=True)
        return INTERRUPTED
    if isinstance(error, AcmeError):
        return _wrong(str(error)[:_LONGEST])
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return IN_PART  # `acme explain RUN | head` ends quietly
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{str(error.filename)[:_LONGEST]}: " if error.filename is not None else ""
        return _wrong(place + reason(error))
    if isinstance(error, MemoryError) or any(word in str(error) for word in _SHORT_OF_MEMORY):
        return _wrong("there is not enough memory")
    if STOPS:
        return explain(STOPS[0])
    say(f"error: a bug of acme-fleet: {type(error).__name__}: {reason(error)}", error=True)
    say(_written(error), error=True)
    return BUG


def _wrong(told: str) -> int:
    say(f"error: {told}", error=True)
    return WRONG_INPUT


def _nobody_reads() -> bool:
    """Tell that the reader of standard output has gone; the output is then turned off."""
    try:
        output = sys.stdout.fileno()
        asked = select.poll()
        asked.register(output, select.POLLOUT)
        gone = any(event & select.POLLERR for _, event in asked.poll(0))
    except OSError:  # it is no file
        return False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _written(error: BaseException) -> str:
    """Write the traceback where only this user can read it, and say where."""
    import platform
    import tempfile
    import traceback
    from importlib.metadata import version

    lines = [
        f"acme-fleet {version('acme-fleet')}, Python {platform.python_version()}, "
        f"{platform.platform()}\n{sys.argv}\n",
        *traceback.format_exception(error),
    ]
    try:
        number, path = tempfile.mkstemp(prefix="acme-fleet-bug-", suffix=".txt")  # mode 0600
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError as full:
        return f"please report it; its traceback could not be written: {reason(full)}"
    return f"please report it to the project, with its traceback, which is in {path}"


# --- the process ------------------------------------------------------------------------------


def prepare_output() -> None:
    """Write what standard output cannot show as ``?``; a closed stream becomes the null device."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def own_process(command: Callable[[], object]) -> int:
    """Run a command that is all this process is for; returns the exit code.

    Errors in threads, in destructors, in logging and at the end of the process are told, or left
    out, without a traceback.
    """
    import logging
    import threading

    threading.excepthook = _failed_thread
    sys.unraisablehook = lambda _: None  # nothing depends on what a destructor could not do
    logging.raiseExceptions = False
    prepare_output()
    code: Any = DONE
    try:
        command()
        sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:  # noqa: BLE001
        code = explain(error)
    return DONE if code is None else code if isinstance(code, int) else IN_PART


def _failed_thread(failed: Any) -> None:
    if isinstance(failed.exc_value, Exception):  # a cancelled run interrupts its threads
        explain(failed.exc_value)
