"""All peers in one process. Every message is encoded and decoded all the same.

What is counted is what would be sent, and roles cannot share memory by accident.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from acme_fleet.errors import AcmeError
from acme_fleet.journal import Journal
from acme_fleet.links.base import Failure, Handler
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages import Message


class EmbeddedLink:
    """A link to handlers in this process, served by ``workers`` threads."""

    def __init__(
        self, owner: str, handlers: Mapping[str, Handler], journal: Journal, workers: int = 1
    ) -> None:
        self.owner = owner
        self._handlers = dict(handlers)
        self._journal = journal
        self._workers = workers

    def members(self) -> list[str]:
        """Names of all peers, in the order they were given."""
        return list(self._handlers)

    def call(
        self, requests: Mapping[str, Message], reply: type[Message], timeout_s: float
    ) -> dict[str, Message | Failure]:
        """See :meth:`acme_fleet.links.base.Link.call`."""
        deadline = time.monotonic() + timeout_s
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix=self.owner)
        try:
            futures = {
                peer: pool.submit(self._deliver, peer, message, reply)
                for peer, message in requests.items()
            }
            return {peer: _outcome(future, deadline) for peer, future in futures.items()}
        finally:
            # A peer that is late must not hold up the others; its answer is dropped.
            pool.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, peer: str, message: Message, reply: type[Message]) -> Message:
        sent = encode(message)
        self._journal.message(self.owner, peer, type(message).__name__, len(sent))
        answer = encode(self._handlers[peer].handle(decode(sent, [type(message)])))
        received = decode(answer, [reply])
        self._journal.message(peer, self.owner, reply.__name__, len(answer))
        return received


def _outcome(future: Future[Message], deadline: float) -> Message | Failure:
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except FutureTimeout:
        return Failure("no answer before the deadline")
    except AcmeError as error:
        return Failure(str(error))
