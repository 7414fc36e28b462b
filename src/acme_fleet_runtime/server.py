"""An artifact behind HTTP, on the standard library.

Classifiers answer at ``/predict``, language models in OpenAI's form under ``/v1``; all have
``/health`` and ``/metrics``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import Any

from acme_fleet_runtime.batching import Batcher
from acme_fleet_runtime.bounds import Budget, Busy, Limits
from acme_fleet_runtime.completions import CompletionsHandler
from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.handler import Handler, is_loopback
from acme_fleet_runtime.metrics import Metrics
from acme_fleet_runtime.outside import one_line, reason
from acme_fleet_runtime.runner import Runner
from acme_fleet_runtime.writer import Writer

_LEAST_TOKEN = 16  # characters
_STACK = 2**20  # bytes of a connection's thread
_ENDING_S = 10.0
_TOLD = b'{"error": "too many connections; ask again"}\n'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_TOLD), _TOLD)
)


class ArtifactServer(ThreadingHTTPServer):
    """A thread for each connection, one for the model; all in bounds."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(
        self, address: tuple[str, int], runner: Runner | Writer, token: str | None, limits: Limits
    ) -> None:
        self.runner, self.token, self.limits = runner, token, limits
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        manifest = runner.manifest
        about = {"name": manifest.name, "precision": manifest.precision, "task": manifest.task}
        self.metrics = Metrics(about)
        self.started = int(time.time())
        self.bodies = Budget(limits.bodies_bytes)
        self.batcher: Batcher | None = None
        if isinstance(runner, Runner):
            self.batcher = Batcher(runner.probabilities, limits.batch, self.metrics.batch)
            room = limits.waiting_bytes // runner.sample_bytes
            self.waiting = Budget(max(min(limits.waiting, room), limits.samples))
        else:
            self.waiting = Budget(limits.waiting_bytes)  # of what the model remembers
        # Decoded images are large, and more threads than cores decode no faster.
        self.preparing = threading.BoundedSemaphore(os.cpu_count() or 1)
        self.connections = Budget(limits.connections)
        super().__init__(address, Handler if self.batcher else CompletionsHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, or one line if there are too many."""
        try:
            self.connections.take(1)
        except Busy:
            self.metrics.request("", 503, 0.0)
            with suppress(OSError):
                request.sendall(_FULL)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See the base class."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.give(1)

    def end(self) -> None:
        """Answer what was begun, for some seconds, and take no more."""
        if self.batcher is not None:
            self.batcher.close()
        end = time.monotonic() + _ENDING_S
        while self.waiting.taken and time.monotonic() < end:
            time.sleep(0.02)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is nobody's error."""


def serve(
    runner: Runner | Writer,
    host: str,
    port: int,
    token: str | None,
    say: Callable[[str], Any],
    limits: Limits | None = None,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; those that were begun are finished.

    Args:
        runner: of the artifact.
        host, port: to listen on.
        token: that requests must send; needed unless ``host`` is of this machine alone.
        say: is told where the server is.
        limits: on what it takes.

    Raises:
        FleetError: if there is no token and should be one, or the port cannot be had.
    """
    where = one_line(host)
    if token is None and not is_loopback(host):
        raise FleetError(
            f"--host {where} can be reached from other machines: set a --token of at least "
            f"{_LEAST_TOKEN} characters, or the environment's ACME_TOKEN"
        )
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii() or " " in token):
        raise FleetError(f"--token: use at least {_LEAST_TOKEN} ASCII characters without spaces")
    before = threading.stack_size(_STACK)
    try:
        server = ArtifactServer((host, port), runner, token, limits or Limits())
    except (OSError, OverflowError) as error:
        raise FleetError(f"cannot listen on {where}, port {port}: {reason(error)}") from error
    try:
        with server:
            place = f"[{host}]" if ":" in host else host
            say(f"serving {runner.manifest.name} at http://{place}:{server.server_port}")
            server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        say("ending")
    finally:
        server.end()
        threading.stack_size(before)
