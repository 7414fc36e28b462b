"""Ask peers, leave out those who fail, and go on only if enough of them answered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from acme_fleet.errors import ProtocolError, QuorumError
from acme_fleet.links.base import Failure, Link
from acme_fleet.messages.base import Message
from acme_fleet.outside import one_line

Reply = TypeVar("Reply", bound=Message)

_LONGEST_REASON = 1000  # an edge server's may name several devices
_NAMED = 10


class RollCall:
    """A role's peers, and who of them is lost at the moment and why.

    Args:
        owner: the role that asks, for errors.
        peers: what those asked are, for errors.
        link: to the peers.
        timeout_s: how long to wait for an answer.
        quorum: the share of those asked that must give a valid answer.
        kept: what a failure does not lose, for errors.
        tell: is told the name and the reason of each peer that fails.
    """

    def __init__(
        self,
        owner: str,
        peers: str,
        link: Link,
        timeout_s: float,
        quorum: float,
        kept: object,
        tell: Callable[[str, str], None],
    ) -> None:
        self._owner = owner
        self._peers = peers
        self._link = link
        self._timeout_s = timeout_s
        self._quorum = quorum
        self._kept = kept
        self._tell = tell
        self.lost: dict[str, str] = {}

    def members(self) -> list[str]:
        """Names of all peers, in a fixed order."""
        return self._link.members()

    def ask(
        self,
        message: Message,
        reply: type[Reply],
        names: Sequence[str],
        check: Callable[[str, Reply], None] | None = None,
    ) -> dict[str, Reply]:
        """Send one message to those named, see :meth:`call`."""
        return self.call(dict.fromkeys(names, message), reply, check)

    def call(
        self,
        requests: Mapping[str, Message],
        reply: type[Reply],
        check: Callable[[str, Reply], None] | None = None,
    ) -> dict[str, Reply]:
        """Send each peer its message, as :meth:`gather` does.

        Raises:
            QuorumError: if too few answered.
        """
        good = self.gather(requests, reply, check)
        self.require(len(good), len(requests))
        return good

    def gather(
        self,
        requests: Mapping[str, Message],
        reply: type[Reply],
        check: Callable[[str, Reply], None] | None = None,
    ) -> dict[str, Reply]:
        """Send each peer its message; the valid replies, the others are remembered as lost.

        Args:
            requests: by peer.
            reply: the only message type that is accepted as an answer.
            check: raises ProtocolError if a peer's reply does not fit, which is a failure too.
        """
        good: dict[str, Reply] = {}
        for name, answer in self._link.call(requests, reply, self._timeout_s).items():
            if isinstance(answer, Failure):
                self.lose(name, answer.reason)
                continue
            assert isinstance(answer, reply)
            try:
                if check:
                    check(name, answer)
                good[name] = answer
                self.lost.pop(name, None)
            except ProtocolError as error:
                self.lose(name, str(error))
        return good

    def lose(self, name: str, reason: str) -> None:
        """Remember that a peer is lost; its text is made safe to show."""
        self.lost[name] = one_line(reason, _LONGEST_REASON)
        self._tell(name, reason)

    def require(self, present: int, asked: int) -> None:
        """Go on only if enough of those asked are there.

        Raises:
            QuorumError: if they are not, with the reasons of those who are lost.
        """
        needed = math.ceil(self._quorum * asked)
        if present < needed:
            named = [f"{name}: {reason}" for name, reason in list(self.lost.items())[:_NAMED]]
            if len(self.lost) > _NAMED:
                named.append(f"and {len(self.lost) - _NAMED} more")
            reasons = "; ".join(named)
            raise QuorumError(
                f"{self._owner}: {present} of {asked} {self._peers} answered, {needed} are needed "
                f"({reasons}); what was finished is in {self._kept}"
            )
