"""Processes in the foreground: started in order, shown, started again, stopped cleanly."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from acme_fleet.errors import AcmeError, RunError

# Container engines give ten seconds unless told otherwise.
_STOP_S, _START_S = 8.0, 90.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SOUND_S = 1.0, 30.0, 60.0
_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Service:
    """A process that is kept running.

    Attributes:
        name: stands before each of its lines.
        command, environment: what is started.
        ready: raises RunError while it is not ready for those started after it.
        watched: the files that it has read, which may be replaced.
        changed: called when they were; without it the process gets SIGHUP and reads them again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], None] | None = None
    watched: Callable[[], Sequence[Path]] | None = None
    changed: Callable[[], None] | None = None
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    again_at: float = field(default=0.0)
    _seen: list[object] = field(default_factory=list)
    _settling: bool = False

    def start(self, say: Callable[[str], None]) -> None:
        """Start it; it ends with this process."""
        self._seen, self._settling = self._stamps(), False
        self.process = subprocess.Popen(
            list(self.command),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self.started = time.monotonic()
        threading.Thread(target=self._show, args=(self.process, say), daemon=True).start()

    def _show(self, process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                say(f"{self.name:<10} {line.rstrip()}")

    def look(self, say: Callable[[str], None]) -> None:
        """Look at its files; a change that has settled since the last look is passed on."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._settling, self._seen = True, stamps
            return
        if not self._settling or self.process is None or self.process.poll() is not None:
            return
        self._settling = False
        say(f"{self.name:<10} takes what has changed in its files")
        try:
            if self.changed is None:
                self.process.send_signal(signal.SIGHUP)
            else:
                self.changed()
        except AcmeError as error:
            say(f"{self.name:<10} cannot: {error}")

    def _stamps(self) -> list[object]:
        return [] if self.watched is None else [_stamp(path) for path in self.watched()]

    def signal(self, number: int) -> None:
        """Send a signal to it and to whatever it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def keep_running(services: Sequence[Service], say: Callable[[str], None]) -> None:
    """Run services until SIGINT, SIGTERM or SIGHUP comes.

    Raises:
        RunError: if one does not become ready.
    """
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # `nohup` has SIGHUP ignored
            signal.signal(number, lambda *_: stopped.set())
    try:
        for service in services:
            say(f"{service.name:<10} starting")
            service.start(say)
            _wait_until_ready(service, stopped)
        say("up")
        while not stopped.wait(0.5):
            for service in services:
                _revive(service, say)
                service.look(say)
    finally:
        say("stopping")
        _stop(services)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(services: Sequence[Service]) -> None:
    """Ask all to end at the same time; then insist."""
    deadline = time.monotonic() + _STOP_S
    for service in services:
        service.signal(signal.SIGTERM)
    for service in services:
        if service.process is not None:
            with suppress(subprocess.TimeoutExpired):
                service.process.wait(timeout=max(0.0, deadline - time.monotonic()))
    for service in services:
        service.signal(signal.SIGKILL)
        if service.process is not None:
            service.process.wait()


def _wait_until_ready(service: Service, stopped: threading.Event) -> None:
    deadline = time.monotonic() + _START_S
    while service.ready is not None and not stopped.is_set():
        assert service.process is not None
        if service.process.poll() is not None:
            raise RunError(f"{service.name} ended at once; its last lines say why")
        try:
            service.ready()
            return
        except RunError as error:
            if time.monotonic() > deadline:
                raise RunError(f"{service.name} does not get ready: {error}") from error
        stopped.wait(0.5)


def _revive(service: Service, say: Callable[[str], None]) -> None:
    """Start a service again that has ended; later each time if it ends soon."""
    assert service.process is not None
    now = time.monotonic()
    if (code := service.process.poll()) is None:
        return
    if not service.again_at:
        if now - service.started > _SOUND_S:
            service.pause_s = _FIRST_PAUSE_S
        service.again_at = now + service.pause_s
        service.pause_s = min(2 * service.pause_s, _LONGEST_PAUSE_S)
        say(f"{service.name:<10} ended with {code}; starting it again")
        with suppress(ProcessLookupError):
            os.killpg(service.process.pid, signal.SIGKILL)  # what it has left behind
    elif now >= service.again_at:
        service.again_at = 0.0
        service.start(say)


def _stamp(path: Path) -> object:
    """A value that changes with a file; also when it comes or goes."""
    with suppress(OSError):
        found = path.stat()
        return str(path), found.st_ino, found.st_mtime_ns, found.st_size
    return str(path)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
