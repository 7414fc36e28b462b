"""A role's end of the local socket to its relay at Flower's SuperLink."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from acme_fleet.errors import ProtocolError, RunError
from acme_fleet.network.flower.frames import Header, receive_frame, send_frame

LONGEST_PATH = 100
"""Bytes of a Unix socket's path that every system can take."""
# A relay whose role was started again is back within half a second.
_PATIENCE_S, _RETRY_S = 1.5, 20.0

Frame = tuple[Header, bytes]


class Channel:
    """Waits for the relay, and has another one started when there is none.

    Args:
        path: of the Unix socket; only this user can reach it.
        start_relay: submits the relay to the SuperLink; raises RunError if that fails.
    """

    def __init__(self, path: Path, start_relay: Callable[[], None]) -> None:
        self._path = path
        self._start_relay = start_relay
        self._inbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._relays = 0
        self._listener = listen(path)
        self._lonely_since = time.monotonic()
        self._started_at = -_RETRY_S
        self.trouble = "no relay has connected yet"
        threading.Thread(target=self._accept, daemon=True).start()

    def send(self, header: Header, payload: bytes) -> bool:
        """Send a frame; true if a relay took it."""
        with self._lock:
            if self._connection is None:
                return False
            try:
                send_frame(self._connection, header, payload)
            except OSError:
                return False
            return True

    def receive(self, timeout_s: float) -> Frame | None:
        """The next answer, or None after the time, or when a relay came or went."""
        self._keep_a_relay()
        try:
            return self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    @property
    def relay(self) -> int:
        """The number of the connected relay, counted from 1; 0 if none."""
        return self._relays if self._connection is not None else 0

    def close(self) -> None:
        """Tell the relay that it can end."""
        self.send({"stop": True}, b"")
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock, suppress(OSError):
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)
        self._path.unlink(missing_ok=True)

    def _keep_a_relay(self) -> None:
        now = time.monotonic()
        alone = self._connection is None and now - self._lonely_since > _PATIENCE_S
        if alone and now - self._started_at > _RETRY_S:
            self._started_at = now
            try:
                self._start_relay()
            except RunError as error:
                self.trouble = str(error)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connection = connection
                self._relays += 1
            self._inbox.put(None)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ProtocolError):
            while True:
                self._inbox.put(receive_frame(connection))
        with self._lock:
            if self._connection is connection:
                self._connection, self._lonely_since = None, time.monotonic()
        self._inbox.put(None)


def listen(path: Path) -> socket.socket:
    """A Unix socket that only this user can reach.

    Raises:
        RunError: if the path is too long, or another process listens there.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise RunError(f"{path} is longer than {LONGEST_PATH} bytes; choose a shorter folder")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(os.fsencode(path)) == 0:
            raise RunError(f"another process of acme-fleet is at work in {path.parent}")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fsencode(path))
    path.chmod(0o600)
    listener.listen()
    return listener
