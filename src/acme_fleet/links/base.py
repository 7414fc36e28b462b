"""The link from a role to the peers below. A failure is a value; the role decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from acme_fleet.messages.base import Message


@dataclass(frozen=True)
class Failure:
    """Why a peer gave no valid answer."""

    reason: str


class Handler(Protocol):
    """A role that answers messages: an edge server or a device."""

    def handle(self, message: Message) -> Message:
        """Answer one message."""
        ...


class Link(Protocol):
    """The peers that a role owns."""

    def members(self) -> list[str]:
        """Names of all peers, in a fixed order."""
        ...

    def call(
        self, requests: Mapping[str, Message], reply: type[Message], timeout_s: float
    ) -> dict[str, Message | Failure]:
        """Send each peer its message and gather the replies.

        Args:
            requests: a message for each peer that is asked.
            reply: the only message type that is accepted as an answer.
            timeout_s: how long to wait for each of them, once it is its turn.

        Returns:
            A reply or a failure for each peer that was asked, in the order of ``requests``.
        """
        ...
