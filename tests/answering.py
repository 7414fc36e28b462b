"""Peers for tests of links: roles that answer with what a function makes of a message."""

from __future__ import annotations

from collections.abc import Callable

from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import RoundReport


class Peer:
    """Remembers what it got, and answers."""

    def __init__(self, answer: Callable[[Message], Message]) -> None:
        self.answer = answer
        self.received: list[Message] = []

    def handle(self, message: Message) -> Message:
        self.received.append(message)
        return self.answer(message)


def report(neurons: int = 1) -> RoundReport:
    return RoundReport(round=0, neurons=neurons, changed=True)


def steady(neurons: int = 1) -> Peer:
    return Peer(lambda _: report(neurons))


def raises(error: BaseException) -> Peer:
    def fail(_: Message) -> Message:
        raise error

    return Peer(fail)
