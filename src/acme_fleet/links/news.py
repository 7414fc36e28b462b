"""Progress events that a peer sends along with its replies: stages and message sizes.

They are copied to the journal, drawn in the report and shown in the terminal: each field is
checked, and text is made safe to show.
"""

from __future__ import annotations

from collections.abc import Set
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


class StageEvent(_Part):
    """A stage that is over, as the journal keeps it."""

    time: Time
    stage: Text
    actor: GroupName
    seconds: Seconds

    @property
    def subjects(self) -> set[str]:
        """The peer that it is about."""
        return {self.actor.partition(":")[0]}  # a group of an edge's devices bears its name


class MessageEvent(_Part):
    """A message that was sent, as the journal keeps it."""

    time: Time
    sender: Annotated[Name, Field(alias="from")]
    to: Name
    type: Type
    bytes: Size
    occasion: Text = ""

    @model_validator(mode="after")
    def _between_two(self) -> Self:
        if self.sender == self.to:
            raise ValueError("nobody sends messages to itself")
        return self

    @property
    def subjects(self) -> set[str]:
        """The peer that it is about."""
        return {self.sender, self.to}


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
    events: Annotated[list[StageEvent | MessageEvent], Field(max_length=MOST_EVENTS)] = []
    stages: Annotated[list[Stage], Field(max_length=MOST_STAGES)] = []

    @staticmethod
    def about(subjects: Set[str], told: Any) -> News | None:
        """The news, if they are well formed and of nobody else."""
        try:
            news = News.model_validate(told)
        except ValidationError:
            return None
        spoken_of = {name for event in news.events for name in event.subjects}
        spoken_of |= {stage.actor.partition(":")[0] for stage in news.stages}
        return news if spoken_of <= subjects else None
