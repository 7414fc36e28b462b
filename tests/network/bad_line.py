"""A line between two hosts on loopback that can be as bad as a real one.

It sees TCP connections and their bytes, not packets: what a network does to packets, TCP turns into
delay, silence or the end of a connection, and those are made here. Bytes of one connection cannot
change their order; with a different delay for each connection, requests overtake each other.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

_PIECE = 2**14
_SILENT_LOOK_S = 0.1


@dataclass
class BadLine:
    """A port of this machine that leads to another one.

    Attributes:
        target: the port that it leads to.
        delay_s: of every piece, in each direction; drawn for each connection up to this.
        cut_after: connections are reset after so many bytes, each drawn up to twice that; 0 for
            never.
        cut_share: share of new connections that are reset at once.
        silent: nothing passes any more, and nobody is told: half-open connections.
        bytes_up, bytes_down: a second, for slow writers and slow readers; 0 for no limit.
        seed: of what is drawn.
        port: to dial.
        opened, cut, passed, held_up: connections so far, those that were cut, bytes that passed,
            pieces that met silence.
    """

    target: int
    delay_s: float = 0.0
    cut_after: int = 0
    cut_share: float = 0.0
    silent: bool = False
    bytes_up: int = 0
    bytes_down: int = 0
    seed: int = 0
    port: int = 0
    opened: int = 0
    cut: int = 0
    passed: int = 0
    held_up: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def cut_all(self) -> int:
        """Reset every connection that there is; their number."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            _reset(*pair)
        self.cut += len(pairs)
        return len(pairs)

    def mend(self) -> None:
        """Make it a good line."""
        self.delay_s, self.cut_share, self.silent = 0.0, 0.0, False
        self.cut_after = self.bytes_up = self.bytes_down = 0

    def close(self) -> None:
        """Take the line down."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def _serve(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                below, _ = self._listener.accept()
                self.opened += 1
                if self._draw.random() < self.cut_share:
                    self.cut += 1
                    below.close()
                    continue
                threading.Thread(target=self._connection, args=(below,), daemon=True).start()

    def _connection(self, below: socket.socket) -> None:
        with below:
            try:
                above = socket.create_connection(("127.0.0.1", self.target), timeout=30)
            except OSError:
                return
            with above:
                above.settimeout(None)
                self._both_ways(below, above)

    def _both_ways(self, below: socket.socket, above: socket.socket) -> None:
        pair = below, above
        left = [round(self._draw.uniform(1, 2 * self.cut_after))] if self.cut_after else []
        delay = self._draw.uniform(0, self.delay_s)
        with self._lock:
            self._pairs.add(pair)
        ways = [(below, above, delay, left, True), (above, below, delay, left, False)]
        threads = [threading.Thread(target=self._copy, args=way, daemon=True) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:
            self._pairs.discard(pair)

    def _copy(
        self,
        source: socket.socket,
        sink: socket.socket,
        delay: float,
        left: list[int],
        up: bool,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE):
                time.sleep(delay)
                speed = self.bytes_up if up else self.bytes_down
                if speed:
                    time.sleep(len(data) / speed)
                self.held_up += self.silent
                while self.silent:
                    time.sleep(_SILENT_LOOK_S)
                sink.sendall(data)
                self.passed += len(data)
                if left:
                    left[0] -= len(data)
                    if left[0] <= 0:
                        self.cut += 1
                        break
            else:
                with suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
        _reset(source, sink)


def _reset(*ends: socket.socket) -> None:
    """End connections at once; bytes on their way are lost."""
    for end in ends:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
