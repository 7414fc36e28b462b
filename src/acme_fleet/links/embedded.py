"""All peers in one process. Every message is encoded and decoded all the same.

What is counted is what would be sent, and roles cannot share memory by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from pydantic import ValidationError

from acme_fleet.errors import AcmeError, RunError
from acme_fleet.links.base import Failure, Handler
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages.base import Message
from acme_fleet.runs.events import Direction, LinkTier
from acme_fleet.runs.journal import Journal


class EmbeddedLink:
    """A link to handlers in this process, which answer one after another.

    Args:
        owner: the role that asks.
        handlers: the peers by name.
        journal: counts the messages.
        tier: the other end of an edge server's link: the owner's tier, or the peers'.
        ahead: is told what up to ``at_once`` peers are about to be asked, so that what they have
            to compute for it can be computed together.
        at_once: how many.
    """

    def __init__(
        self,
        owner: str,
        handlers: Mapping[str, Handler],
        journal: Journal,
        tier: LinkTier,
        ahead: Callable[[Mapping[str, Message]], None] = lambda _: None,
        at_once: int = 1,
    ) -> None:
        self.owner = owner
        self._handlers = dict(handlers)
        self._journal = journal
        self._tier: LinkTier = tier
        self._ahead = ahead
        self._at_once = at_once

    def members(self) -> list[str]:
        """Names of all peers, in the order they were given."""
        return list(self._handlers)

    def call(
        self, requests: Mapping[str, Message], reply: type[Message], timeout_s: float
    ) -> dict[str, Message | Failure]:
        """See :meth:`acme_fleet.links.base.Link.call`."""
        names, answers = list(requests), {}
        for first in range(0, len(names), self._at_once):
            turn = {name: requests[name] for name in names[first : first + self._at_once]}
            self._ahead(turn)
            for peer, message in turn.items():
                answers[peer] = self._ask(peer, message, reply, timeout_s)
        return answers

    def _ask(
        self, peer: str, message: Message, reply: type[Message], timeout_s: float
    ) -> Message | Failure:
        pool = ThreadPoolExecutor(1, thread_name_prefix=self.owner)
        try:
            return pool.submit(self._deliver, peer, message, reply).result(timeout_s)
        except FutureTimeout:
            return Failure("no answer before the deadline")
        except RunError:  # this machine's disk, which all have in common
            raise
        except (AcmeError, ValidationError) as error:  # ValidationError: its own message is invalid
            return Failure(str(error))
        finally:
            # A peer that is late must not hold up the others; its answer is dropped.
            pool.shutdown(wait=False)

    def _deliver(self, peer: str, message: Message, reply: type[Message]) -> Message:
        sent, occasion = encode(message), message.occasion
        self._count(message, sent, occasion, self.owner, peer, "down")
        answer = self._handlers[peer].handle(decode(sent, [type(message)]))
        received = encode(answer)
        self._count(answer, received, occasion, peer, self.owner, "up")
        return decode(received, [reply])

    def _count(
        self,
        message: Message,
        data: bytes,
        occasion: str,
        sender: str,
        receiver: str,
        direction: Direction,
    ) -> None:
        self._journal.message(
            sender,
            receiver,
            type(message).__name__,
            len(data),
            tier=self._tier,
            direction=direction,
            occasion=occasion,
        )
