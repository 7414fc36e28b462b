"""What a peer tells of its progress beside its answers: stages and message sizes, nothing else."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from acme_fleet.fleet import Name
from acme_fleet.journal import is_moment
from acme_fleet.messages import GroupName

MOST_EVENTS, MOST_STAGES = 2000, 200

Text = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**53)]


def _check_moment(text: str) -> str:
    if not is_moment(text):
        raise ValueError("a moment is a date, a time and an offset")
    return text


Moment = Annotated[Text, AfterValidator(_check_moment)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageEvent(_Part):
    """A stage that is over, as the journal keeps it."""

    time: Moment
    stage: Text
    actor: GroupName
    seconds: NonNegativeFloat

    @property
    def subjects(self) -> set[str]:
        """Whom it is about."""
        return {self.actor.partition(":")[0]}  # a group of an edge's devices bears its name


class MessageEvent(_Part):
    """A message that was sent, as the journal keeps it."""

    time: Moment
    sender: Annotated[Name, Field(alias="from")]
    to: Name
    type: Text
    bytes: Count
    occasion: Text = ""

    @property
    def subjects(self) -> set[str]:
        """Whom it is about."""
        return {self.sender, self.to}


class Stage(_Part):
    """A stage that is not over."""

    actor: GroupName
    name: Text
    done: Count
    total: Count
    note: Text = ""


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
