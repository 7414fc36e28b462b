"""The console's entry point, which ends the process without taking it apart first."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import NoReturn

from acme_fleet.cli import app
from acme_fleet.cli.signals import ENDING, exit_code, heed
from acme_fleet.failures import STOPS, own_process

_UNEXPLAINED = (1, 130)  # exit codes of a command that said nothing of a signal of its own


def main() -> NoReturn:
    """Run the command that was typed, and end the process."""
    heed(STOPS)
    code = own_process(app)
    if STOPS and code in _UNEXPLAINED:
        code = exit_code(STOPS[0])
    _end(code)


def _end(code: int) -> NoReturn:
    """End at once: to take torch's many objects apart takes seconds, and nobody needs it.

    What libraries do at the end is done. Threads that still work are not waited for: every file
    is whole at any time.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # nothing is left that could be interrupted
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or it was closed
            code = code or 1
    os._exit(code)


if __name__ == "__main__":
    main()
