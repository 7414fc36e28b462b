"""Progress events that a peer sends along with its replies: stages and message sizes.

They are copied to the journal, drawn in the report and shown in the terminal: each field is
checked, and text is made safe to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from acme_fleet.config.devices import Name
from acme_fleet.messages.base import MOST_BYTES, GroupName, Message
from acme_fleet.outside import one_line
from acme_fleet.runs.events import FaultEvent, MessageEvent, StageEvent, Tier

MOST_EVENTS, MOST_STAGES = 2000, 200
MOST_TOLD = 20_000
"""Events of a peer, and of each of those below it, in a run."""
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
_CLOCKS_DIFFER = timedelta(days=1)


def _check_time(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not _EARLIEST < moment < datetime.now(UTC) + _CLOCKS_DIFFER:
        raise ValueError(f"{text} is no time of a run")
    return text


def _check_type(name: str) -> str:
    if name not in Message.registry:
        raise ValueError("there is no message of this type")
    return name


Time = Annotated[str, Field(max_length=40), AfterValidator(_check_time)]
Text = Annotated[str, Field(max_length=200), AfterValidator(one_line)]
Type = Annotated[str, Field(max_length=40), AfterValidator(_check_type)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Size = Annotated[int, Field(ge=0, le=MOST_BYTES)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ToldStage(StageEvent):
    """A stage that is over."""

    time: Time
    stage: Text
    actor: GroupName
    seconds: Seconds

    def is_of(self, subjects: Mapping[str, Tier]) -> bool:
        """True if it is about one of them, and of that one's tier."""
        return subjects.get(_owner(self.actor)) == self.tier


class ToldMessage(MessageEvent):
    """A message between an edge server and one of its devices."""

    time: Time
    sender: Annotated[Name, Field(alias="from")]
    receiver: Annotated[Name, Field(alias="to")]
    type: Type
    size_bytes: Annotated[Size, Field(alias="bytes")]
    occasion: Text = ""

    def is_of(self, subjects: Mapping[str, Tier]) -> bool:
        """True if it went between those two tiers, in the direction that it says."""
        ends = subjects.get(self.sender), subjects.get(self.receiver)
        expected = ("device", "edge") if self.direction == "up" else ("edge", "device")
        return self.tier == "device" and ends == expected


class ToldFault(FaultEvent):
    """A fault that a peer noticed."""

    time: Time
    fault: Text
    actor: GroupName
    about: Name

    def is_of(self, subjects: Mapping[str, Tier]) -> bool:
        """True if it is about one of them, and noticed by one of the tier that it says."""
        return subjects.get(_owner(self.actor)) == self.tier and self.about in subjects


def _owner(actor: str) -> str:
    return actor.partition(":")[0]  # a group of an edge's devices bears its name


class Stage(_Part):
    """A stage that is not over."""

    actor: GroupName
    name: Text
    done: Count
    total: Count
    note: Text = ""

    @model_validator(mode="after")
    def _part_of_all(self) -> Self:
        if self.done > self.total:
            raise ValueError("more is done than there is to do")
        return self


class News(_Part):
    """``told`` events have been told, these the latest of them."""

    told: Count = 0
    events: Annotated[list[ToldStage | ToldMessage | ToldFault], Field(max_length=MOST_EVENTS)] = []
    stages: Annotated[list[Stage], Field(max_length=MOST_STAGES)] = []

    @staticmethod
    def about(subjects: Mapping[str, Tier], told: Any) -> News | None:
        """The news, if they are well formed and of nobody else.

        Args:
            subjects: names, and the tier of each.
            told: as it came.
        """
        try:
            news = News.model_validate(told)
        except ValidationError:
            return None
        own = all(event.is_of(subjects) for event in news.events)
        return news if own and all(_owner(s.actor) in subjects for s in news.stages) else None
