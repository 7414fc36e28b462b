"""A user's checker in a process of its own, with a time limit.

The process protects a run from crashes and endless loops of the checker. It is no protection from
malice: the user's code runs with the user's rights.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line

_CHILD = Path(__file__).with_name("checker_child.py")
_START_S = 60.0
_LONGEST = 100_000  # bytes of an answer


@dataclass
class CheckerProcess:
    """A running checker.

    Attributes:
        name: file and function, for errors. process: answers a line with a line.
        seconds: time limit of an answer. told: what the process wrote to standard error.
    """

    name: str
    process: subprocess.Popen[bytes]
    seconds: float
    told: IO[bytes]

    @staticmethod
    @contextmanager
    def started(file: Path, function: str, seconds: float) -> Iterator[CheckerProcess]:
        """A process that has loaded the function; it is ended with all that it started.

        Raises:
            FleetError: if the file cannot be loaded, or has no such function.
        """
        name = f"checker: {function} of {file}"
        if not file.is_file():
            raise FleetError(f"{name}: there is no such file")
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD), str(file), function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                start_new_session=True,
            )
            try:
                checker = CheckerProcess(name, process, seconds, told)
                checker._read("while it was loaded", _START_S, "ready")
                yield checker
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        with suppress(OSError):
                            stream.close()

    def ask(self, texts: Sequence[str], place: str) -> bool:
        """The function's answer to question, answer and reply.

        Raises:
            FleetError: naming the place, if it crashes, ends, hangs or returns no bool.
        """
        assert self.process.stdin is not None
        where = f"at {place}"
        try:
            self.process.stdin.write(json.dumps(list(texts)).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._ended(where) from None
        return self._read(where, self.seconds, "right")

    def _read(self, where: str, seconds: float, key: str) -> bool:
        line = self._line(where, seconds)
        try:
            answer: Any = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and isinstance(answer.get(key), bool):
            return answer[key]
        told = answer.get("error") if isinstance(answer, dict) else line[:200]
        raise FleetError(f"{self.name}: it failed {where}: {one_line(str(told))}")

    def _line(self, where: str, seconds: float) -> bytes:
        assert self.process.stdout is not None
        number, line, end = self.process.stdout.fileno(), b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(number, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise FleetError(
                        f"{self.name}: no answer after {seconds:g} s {where}; raise "
                        f"checker.seconds, or correct the function"
                    )
                part = os.read(number, 65536)
                if not part or len(line) > _LONGEST:
                    raise self._ended(where)
                line += part
        return line

    def _ended(self, where: str) -> FleetError:
        code = self.process.wait()
        self.told.seek(0)
        told = one_line(self.told.read()[-2000:].decode(errors="replace").strip()[-200:])
        return FleetError(f"{self.name}: its process ended with code {code} {where}: {told}")
