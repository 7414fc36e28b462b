"""Held-out questions, answered greedily and marked by the task's checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acme_fleet.report.intervals import wilson
from acme_fleet.stratos.checkers import right_replies
from acme_fleet.stratos.questions import Question, normalised
from acme_fleet.stratos.replies import read_replies
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.teacher import Progress, Writer, ask


@dataclass(frozen=True)
class Marks:
    """Right answers among those that were asked."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """The accuracy."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of it."""
        return wilson(self.share, self.asked)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} [{low:.3f}, {high:.3f}]"


def examined(
    request: Request,
    writer: Writer,
    questions: Sequence[Question],
    out: Path,
    progress: Progress = lambda done, total: None,
) -> Marks:
    """Ask and mark; answers that the file has are not written again.

    Args:
        request: the task. writer: answers. questions: one that comes again is asked once.
        out: JSON Lines of question and reply. progress: called with answered and all questions.

    Raises:
        FleetError: if the file is none of replies, or the checker fails.
        WriteError: if it cannot be written.
    """
    once = list({normalised(question.text): question for question in questions}.values())
    ask(request, writer, once, out, progress)
    replies, _ = read_replies(request, once, out)
    return Marks(len(right_replies(request.checker, replies)), len(replies))
