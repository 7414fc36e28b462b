"""Peers over Flower: messages go through a relay at the SuperLink; what fails is asked again.

The payload is exactly what :func:`acme_fleet.links.wire.encode` makes. A peer that needs long
answers "not yet" from time to time, with its progress, and is asked again without the payload.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from acme_fleet.errors import ProtocolError
from acme_fleet.links.base import Failure
from acme_fleet.links.news import MOST_TOLD, News
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import ProfileRequest
from acme_fleet.network.flower.channel import Channel, Frame
from acme_fleet.network.flower.frames import Header
from acme_fleet.outside import one_line
from acme_fleet.runs.events import LinkTier, Tier
from acme_fleet.runs.journal import Journal, Observer

WAIT_S = 20.0
"""Seconds until a peer must have said that it is not ready yet."""
_AGAIN_S, _LOOK_S = 3.0, 1.0  # between two tries, and between two looks at the clock
_SLOWEST = 20_000.0  # bytes a second; slower than that is taken for lost
# Beyond that: until a question without any answer is asked again, and until Flower drops it.
_LATE_S, _SPARE_S = 20.0, 100.0
_BACK_S = 1.0  # in place of WAIT_S: until a peer that was given up says at least that it is back


class RunIdentity(NamedTuple):
    """The identity of a run that both ends of a link must agree on."""

    run: str
    fleet: str


@dataclass
class _Ask:
    """A question and how it stands."""

    peer: str
    node: int | None
    request: bytes
    name: str
    occasion: str = ""
    id: str = ""
    older: set[str] = field(default_factory=set)
    known: bool = False
    failing_since: float | None = None
    reason: str = ""
    again_at: float = 0.0
    lost_at: float = 0.0
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = hashlib.sha256(self.request).hexdigest()


class FlowerLink:
    """A link to the nodes of one SuperLink.

    Args:
        owner: the role that asks.
        channel: the way to the SuperLink.
        nodes: each peer's node, as registered with its key; None if that was revoked. Order of
            the members.
        identity: which run of which fleet.
        below: the names of those whom a peer serves itself; it may tell of them.
        tier: the other end of an edge server's link: the owner's tier, or the peers'.
        journal: gets this link's messages and what the peers tell of theirs.
        observer: is told about the peers' progress.
        grace_s: how long a peer may be out of reach before it is given up.
    """

    def __init__(
        self,
        owner: str,
        channel: Channel,
        nodes: Mapping[str, int | None],
        identity: RunIdentity,
        journal: Journal,
        tier: LinkTier,
        observer: Observer | None = None,
        grace_s: float = 300.0,
        below: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._owner = owner
        self._channel = channel
        self._nodes = dict(nodes)
        self._identity = identity
        self._journal = journal
        self._tier: LinkTier = tier
        self._observer = observer
        self._grace_s = grace_s
        self._given_up: set[str] = set()
        self._told = dict.fromkeys(self._nodes, 0)
        self._stages: dict[str, set[tuple[str, str]]] = {peer: set() for peer in self._nodes}
        own: Tier = "edge" if tier == "cloud" else "device"
        self._subjects: dict[str, dict[str, Tier]] = {
            peer: {peer: own, **dict.fromkeys((below or {}).get(peer, ()), "device")}
            for peer in self._nodes
        }

    def members(self) -> list[str]:
        """Names of all peers, in the order they were given."""
        return list(self._nodes)

    def call(
        self, requests: Mapping[str, Message], reply: type[Message], timeout_s: float
    ) -> dict[str, Message | Failure]:
        """See :meth:`acme_fleet.links.base.Link.call`. All peers work at the same time."""
        asks = [
            _Ask(
                peer,
                self._nodes[peer],
                encode(message),
                type(message).__name__,
                message.occasion,
            )
            for peer, message in requests.items()
        ]
        answers = self._gather(asks, reply, timeout_s)
        return {peer: answers[peer] for peer in requests}

    def unreachable(self, timeout_s: float) -> dict[str, str]:
        """Peers that cannot be asked, or are of another fleet, and why. Asks them for nothing."""
        asks = [_Ask(peer, node, b"", "") for peer, node in self._nodes.items()]
        answers = self._gather(asks, ProfileRequest, timeout_s)
        return {peer: a.reason for peer, a in answers.items() if isinstance(a, Failure)}

    def _gather(
        self, asks: list[_Ask], reply: type[Message], timeout_s: float
    ) -> dict[str, Message | Failure]:
        deadline = time.monotonic() + timeout_s
        answers: dict[str, Message | Failure] = {
            ask.peer: Failure("its key was revoked") for ask in asks if ask.node is None
        }
        relay = 0
        while len(answers) < len(asks):
            self._journal.stop_if_cancelled()
            now, before = time.monotonic(), relay
            relay = self._channel.relay
            for ask in asks:
                if ask.peer in answers:
                    continue
                if now >= deadline:
                    answers[ask.peer] = Failure(ask.reason or "no answer before the deadline")
                elif relay and relay != before:
                    self._send(ask)  # a new relay knows of no question
                elif not relay:
                    self._missed(ask, self._channel.trouble, answers, waits=True)
                elif ask.again_at and now >= ask.again_at:
                    self._send(ask)
                elif now >= ask.lost_at:
                    self._missed(ask, "no answer from its host", answers)
            if len(answers) < len(asks):
                frame = self._channel.receive(min(_LOOK_S, deadline - now))
                self._take(frame, asks, reply, answers)
        return answers

    def _send(self, ask: _Ask) -> None:
        """Ask once more, with the payload unless the peer has it."""
        payload = b"" if ask.known else ask.request
        ask.older.add(ask.id)
        ask.id, ask.again_at = secrets.token_hex(16), 0.0
        ready = _BACK_S if ask.peer in self._given_up else WAIT_S
        wait = ready + len(payload) / _SLOWEST
        ask.lost_at = time.monotonic() + wait + _LATE_S
        header: Header = {
            **self._identity._asdict(),
            "node": ask.node,
            "id": ask.id,
            "key": ask.key,
            "wait": ready,
            "patience": wait + _SPARE_S,
            "told": self._told[ask.peer],
        }
        if self._channel.send(header, payload) and payload:
            self._journal.message(
                self._owner,
                ask.peer,
                ask.name,
                len(payload),
                tier=self._tier,
                direction="down",
                occasion=ask.occasion,
            )

    def _take(
        self,
        frame: Frame | None,
        asks: list[_Ask],
        reply: type[Message],
        answers: dict[str, Message | Failure],
    ) -> None:
        header, payload = frame or ({}, b"")
        told = str(header.get("id", ""))
        ask = next((a for a in asks if told and told in {a.id, *a.older}), None)
        if ask is None or ask.peer in answers or ("error" in header and told != ask.id):
            return  # that an older question failed says nothing of the one on its way
        ask.id = ""
        ask.older.clear()
        if "error" in header:
            reason = one_line(str(header["error"]), 500)
            if header.get("passing"):
                self._missed(ask, reason, answers)
            else:
                answers[ask.peer] = Failure(reason)
            return
        ask.failing_since, ask.reason = None, ""
        self._given_up.discard(ask.peer)
        self._pass_on(ask.peer, header)
        if header.get("pending"):
            ask.known = True
            self._send(ask)
        elif header.get("unknown") and not ask.request:
            answers[ask.peer] = ProfileRequest()  # it is there, and that was all
        elif header.get("unknown"):
            ask.known = False
            self._send(ask)
        else:
            answers[ask.peer] = self._checked(ask, payload, reply)

    def _missed(
        self,
        ask: _Ask,
        reason: str,
        answers: dict[str, Message | Failure],
        *,
        waits: bool = False,
    ) -> None:
        """A peer that is out of reach may come back; not for ever."""
        now = time.monotonic()
        ask.reason = reason
        ask.failing_since = ask.failing_since or now
        ask.again_at, ask.lost_at = now + _AGAIN_S, now + _SPARE_S
        gone = ask.peer in self._given_up and not waits
        if gone or now - ask.failing_since > self._grace_s:
            self._given_up.add(ask.peer)  # is asked again next time, but not waited for
            answers[ask.peer] = Failure(f"out of reach for {self._grace_s:.0f} s: {reason}")

    def _checked(self, ask: _Ask, payload: bytes, reply: type[Message]) -> Message | Failure:
        try:
            message = decode(payload, [reply])
        except ProtocolError as error:
            return Failure(str(error))
        self._journal.message(
            ask.peer,
            self._owner,
            type(message).__name__,
            len(payload),
            tier=self._tier,
            direction="up",
            occasion=ask.occasion,
        )
        return message

    def _pass_on(self, peer: str, header: Mapping[str, Any]) -> None:
        """Pass on a peer's progress events; a peer can only report its own."""
        news = News.about(self._subjects[peer], header.get("news", {}))
        told = self._told[peer] + (len(news.events) if news else 0)
        if news is None or news.told != told or told > MOST_TOLD * len(self._subjects[peer]):
            return  # also who tells of more or fewer events than it sends, or without end
        self._told[peer] = told
        self._journal.copy(news.events)
        if self._observer:
            for stage in news.stages:
                self._stages[peer].add((stage.actor, stage.name))
                if len(self._stages[peer]) > MOST_TOLD:
                    return
                self._observer.stage(stage.actor, stage.name, stage.done, stage.total, stage.note)
