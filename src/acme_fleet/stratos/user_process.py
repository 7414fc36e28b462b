"""A user's function in a process of its own, with a time limit.

The process protects a run from crashes and endless loops of the function. It is no protection from
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

_CHILD = Path(__file__).with_name("user_child.py")
_START_S = 60.0
_LONGEST = 1_000_000  # bytes of an answer


@dataclass
class UserProcess:
    """A running function.

    Attributes:
        setting: the key of the task file that names it. name: with file and function, for errors.
        process: answers a line with a line. seconds: time limit of an answer.
        told: what the process wrote to standard error.
    """

    setting: str
    name: str
    process: subprocess.Popen[bytes]
    seconds: float
    told: IO[bytes]

    @staticmethod
    @contextmanager
    def started(setting: str, file: Path, function: str, seconds: float) -> Iterator[UserProcess]:
        """A process that has loaded the function; it is ended with all that it started.

        Raises:
            FleetError: if the file cannot be loaded, or has no such function.
        """
        name = f"{setting}: {function} of {file}"
        if not file.is_file():
            raise FleetError(f"{name}: there is no such file")
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD), str(file), function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                start_new_session=True,
            )
            try:
                started = UserProcess(setting, name, process, seconds, told)
                started._read("while it was loaded", _START_S)
                yield started
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        with suppress(OSError):
                            stream.close()

    def call(self, arguments: Sequence[Any], where: str) -> Any:
        """The function's value, of JSON's types.

        Args:
            arguments: of JSON's types. where: for errors, such as ``at FILE, line 3``.

        Raises:
            FleetError: if it crashes, ends or hangs.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._ended(where) from None
        return self._read(where, self.seconds)

    def _read(self, where: str, seconds: float) -> Any:
        line = self._line(where, seconds)
        try:
            answer: Any = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and "value" in answer:
            return answer["value"]
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
                        f"{self.setting}.seconds, or correct the function"
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
