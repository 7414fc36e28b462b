"""All peers in one process. Every message is encoded and decoded all the same.

What is counted is what would be sent, and roles cannot share memory by accident.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from pydantic import ValidationError

from acme_fleet.errors import AcmeError
from acme_fleet.journal import Journal
from acme_fleet.links.base import Failure, Handler
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages import Message


class EmbeddedLink:
    """A link to handlers in this process, at most ``workers`` of them at work.

    Peers take turns only because they share a machine, so each one's time runs from its turn.
    """

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
        waiting, answers = list(requests.items()), {}
        for first in range(0, len(waiting), self._workers):
            answers |= self._turn(waiting[first : first + self._workers], reply, timeout_s)
        return answers

    def _turn(
        self, requests: Sequence[tuple[str, Message]], reply: type[Message], timeout_s: float
    ) -> dict[str, Message | Failure]:
        """Ask some peers at the same time."""
        deadline = time.monotonic() + timeout_s
        pool = ThreadPoolExecutor(len(requests), thread_name_prefix=self.owner)
        try:
            futures = {
                peer: pool.submit(self._deliver, peer, message, reply) for peer, message in requests
            }
            return {peer: _outcome(future, deadline) for peer, future in futures.items()}
        finally:
            # A peer that is late must not hold up the others; its answer is dropped.
            pool.shutdown(wait=False)

    def _deliver(self, peer: str, message: Message, reply: type[Message]) -> Message:
        sent = encode(message)
        self._journal.message(self.owner, peer, type(message).__name__, len(sent))
        answer = self._handlers[peer].handle(decode(sent, [type(message)]))
        received = encode(answer)
        self._journal.message(peer, self.owner, type(answer).__name__, len(received))
        return decode(received, [reply])


def _outcome(future: Future[Message], deadline: float) -> Message | Failure:
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except FutureTimeout:
        return Failure("no answer before the deadline")
    except (AcmeError, ValidationError) as error:  # ValidationError: its own message is invalid
        return Failure(str(error))
