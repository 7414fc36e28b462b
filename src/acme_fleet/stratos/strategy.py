"""Alignment, injection, or both: by the share of questions that the teacher answers right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acme_fleet.errors import FleetError
from acme_fleet.report.intervals import wilson
from acme_fleet.stratos.checkers import right_replies
from acme_fleet.stratos.questions import Question
from acme_fleet.stratos.replies import read_replies
from acme_fleet.stratos.request import Coverage, Request

Strategy = Literal["alignment", "injection", "mixed"]


@dataclass(frozen=True)
class Covered:
    """The teacher's coverage of a task, and the strategy that follows.

    Attributes:
        right, asked: labelled questions. low, high: Wilson's 95 % interval of the share.
        strategy: by the thresholds. reason: in words and numbers.
    """

    right: int
    asked: int
    low: float
    high: float
    strategy: Strategy
    reason: str


def choose_strategy(right: int, asked: int, thresholds: Coverage) -> Covered:
    """Alignment if low ≥ τ_high, injection if high ≤ τ_low, mixed between (ours).

    Args:
        right, asked: the teacher's right answers, and the questions.
        thresholds: τ_high is ``alignment_from``, τ_low is ``injection_to``.

    Raises:
        ValueError: if more are right than were asked, or none was asked.
    """
    if not 0 <= right <= asked or asked < 1:
        raise ValueError(f"{right} of {asked} questions cannot be right")
    low, high = wilson(right / asked, asked)
    share = f"{right} of {asked} right: {right / asked:.3f} [{low:.3f}, {high:.3f}]"
    upper, lower = thresholds.alignment_from, thresholds.injection_to
    if low >= upper:
        return Covered(
            *(right, asked, low, high, "alignment"),
            f"{share}. The lower end reaches alignment_from {upper:g}: the teacher knows the "
            f"domain, and the student can imitate it.",
        )
    if high <= lower:
        return Covered(
            *(right, asked, low, high, "injection"),
            f"{share}. The upper end does not exceed injection_to {lower:g}: the teacher lacks the "
            f"domain, and data must be made from known answers.",
        )
    return Covered(
        *(right, asked, low, high, "mixed"),
        f"{share}. The interval is neither above alignment_from {upper:g} nor below injection_to "
        f"{lower:g}: the teacher's answers that the checker accepts, and data from known answers.",
    )


def measure_coverage(request: Request, train: list[Question], path: Path) -> Covered:
    """Mark a teacher's replies to labelled questions with the task's checker, and choose.

    Args:
        request: the task. train: labelled questions to learn from.
        path: of the replies, see :func:`~acme_fleet.stratos.replies.read_replies`.

    Raises:
        FleetError: if the file is wrong, the teacher was shown the answers, there are too few
            replies, or the checker fails.
    """
    replies, explained = read_replies(request, train, path)
    if explained:
        raise FleetError(
            f"{path}: the teacher was shown the answers: such replies say nothing of what it knows"
        )
    wanted = request.coverage.questions
    if len(replies) < wanted:
        raise FleetError(
            f"{path} has replies to {len(replies)} questions, coverage.questions is {wanted}: ask "
            f"more, or lower it"
        )
    right = len(right_replies(request.checker, replies))
    return choose_strategy(right, len(replies), request.coverage)
