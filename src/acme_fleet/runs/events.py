"""Events of a run: stages, messages, faults, figures. :mod:`acme_fleet.runs.journal` keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Tier = Literal["cloud", "edge", "device", "rivals"]
"""Of an actor; ``rivals`` are measured beside the three."""
LinkTier = Literal["cloud", "device"]
"""The other end of the edge server's link that a message went over."""
Direction = Literal["up", "down"]
"""Up is towards the cloud."""


def _check_moment(text: str) -> str:
    try:
        complete = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(f"{text} is no date and time with its offset from UTC")
    return text


class _Event(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    time: Annotated[str, AfterValidator(_check_moment)]

    @property
    def at_s(self) -> float:
        """Its time, in seconds."""
        return datetime.fromisoformat(self.time).timestamp()

    def record(self) -> dict[str, Any]:
        """The JSON object of its line."""
        return self.model_dump(by_alias=True)


class StageEvent(_Event):
    """A stage that is over; ``time`` is its beginning."""

    stage: str
    actor: str
    tier: Tier
    seconds: Annotated[float, Field(ge=0)]


class MessageEvent(_Event):
    """A message that was sent.

    ``occasion`` tells it from other messages of its type between the two: two of one occasion are
    one message that was sent again.
    """

    sender: Annotated[str, Field(alias="from")]
    receiver: Annotated[str, Field(alias="to")]
    type: str
    size_bytes: Annotated[int, Field(alias="bytes", ge=0)]
    occasion: str = ""
    tier: LinkTier
    direction: Direction

    @property
    def edge(self) -> str:
        """The edge server at one of its ends."""
        towards_edge = (self.direction == "up") == (self.tier == "device")
        return self.receiver if towards_edge else self.sender


class FaultEvent(_Event):
    """A fault that ``actor`` noticed in ``about``, a peer or itself, and went on from."""

    fault: str
    actor: str
    tier: Tier
    about: str


class FigureEvent(_Event):
    """A number that ``actor`` measured on the way; it stays on the host that measured it.

    ``figure`` is the name of the stage that it is of, or :data:`VALIDATION`; ``step`` the part of
    the stage or the round of the device, counted from 1.
    """

    figure: str
    actor: str
    tier: Tier
    step: Annotated[int, Field(ge=0)]
    value: float


Event = StageEvent | MessageEvent | FaultEvent | FigureEvent

VALIDATION = "validation score"
"""The figure of a device's best header so far, by its own validation data; its steps are rounds."""


def messages_of(events: Iterable[Event]) -> list[MessageEvent]:
    """The messages among events."""
    return [event for event in events if isinstance(event, MessageEvent)]


def stages_of(events: Iterable[Event]) -> list[StageEvent]:
    """The stages among events."""
    return [event for event in events if isinstance(event, StageEvent)]


_PAUSE_S = 120.0

Span = tuple[float, float]
"""Its begin and its end, in seconds."""


def worked(events: Iterable[Event]) -> tuple[Span | None, list[Span]]:
    """When a run began and ended, and the pauses in between; no span if nothing was recorded.

    A pause is a time in which nothing was recorded, of more than two minutes and a tenth of the
    rest: between an interrupted run and its resumption there may be a night. A device that unpacks
    a large backbone and computes its features records nothing for a minute.
    """
    events = list(events)
    spans = [(e.at_s, e.at_s + e.seconds) for e in stages_of(events)]
    spans = sorted([*spans, *((e.at_s, e.at_s) for e in messages_of(events))])
    if not spans:
        return None, []
    begin = reach = spans[0][0]
    gaps: list[Span] = []
    for start, stop in spans:
        if start > reach:
            gaps.append((reach, start))
        reach = max(reach, stop)
    busy = reach - begin - _length(gaps)
    return (begin, reach), [gap for gap in gaps if _length([gap]) > max(_PAUSE_S, 0.1 * busy)]


def duration_s(events: Iterable[Event]) -> float:
    """Seconds from a run's first event to its last one, without pauses."""
    span, pauses = worked(events)
    return _length([span] if span else []) - _length(pauses)


def _length(spans: Iterable[Span]) -> float:
    return sum(stop - start for start, stop in spans)


def method_and_resent(
    events: Iterable[Event],
) -> tuple[list[MessageEvent], list[MessageEvent]]:
    """Messages of the method, and those that were sent again beside them.

    A message is one of the method by sender, receiver, type and occasion. Where it was sent
    several times, after an interruption or a failure, the last one counts: the result rests on it.
    """
    last: dict[tuple[str, ...], MessageEvent] = {}
    again: list[MessageEvent] = []
    for event in messages_of(events):
        key = (event.sender, event.receiver, event.type, event.occasion)
        if key in last:
            again.append(last.pop(key))
        last[key] = event
    return list(last.values()), again
