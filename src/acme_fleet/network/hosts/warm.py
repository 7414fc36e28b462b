"""Flower's process for each message, forked from one that has loaded Flower already.

A SuperNode starts ``flwr-clientapp`` for every message, which takes over a second of processor time
to import. It finds the command below first in its PATH; that one asks this process to fork.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from acme_fleet.failures import explain
from acme_fleet.network.flower.channel import listen
from acme_fleet.network.flower.frames import receive_frame
from acme_fleet.network.flower.soon import look_again_soon

_COMMAND = "flwr-clientapp"
_PRELOADED = ("flwr.app", "flwr.clientapp", "httpcore", "acme_fleet.network.flower.frames")
_STUB = """\
#!{python} -ISE
import json, os, socket, struct, sys
arguments = sys.argv[1:]
try:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect({socket!r})
        text = json.dumps({{"arguments": arguments}}).encode()
        connection.sendall(struct.pack(">IQ", len(text), 0) + text)
except OSError:
    os.execv({real!r}, [{real!r}, *arguments])
"""


def write_stub(folder: Path, socket: Path, real: str) -> None:
    """Write the command that is found in place of ``flwr-clientapp``; it can do without us."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _COMMAND
    path.write_text(_STUB.format(python=sys.executable, socket=str(socket), real=real))
    path.chmod(0o700)


def serve(path: Path) -> None:
    """Fork for every command line that comes, until the process is told to stop."""
    (command,) = entry_points(group="console_scripts", name=_COMMAND)
    run = command.load()
    for name in _PRELOADED:
        importlib.import_module(name)
    look_again_soon()
    gc.freeze()  # what is loaded stays shared
    listener = listen(path)
    while True:
        _bury()
        connection, _ = listener.accept()
        with connection:
            try:
                arguments = [str(part) for part in receive_frame(connection)[0]["arguments"]]
            except OSError:
                continue
        if os.fork() == 0:
            listener.close()
            _become(run, arguments)


def _bury() -> None:
    """Take note of those that have ended; whoever ends later waits for the next message."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(run: Callable[[], object], arguments: list[str]) -> None:
    sys.argv = [_COMMAND, *arguments]
    code = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001  a forked process must not go on as its parent
        code = explain(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
