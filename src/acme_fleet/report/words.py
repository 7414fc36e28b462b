"""Sizes, durations and energies as people write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acme_fleet.messages.results import HeaderContender


def bytes_text(size: float) -> str:
    """A size as people write it, e.g. ``412 kB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"


def duration_text(seconds: float) -> str:
    """A duration as people write it, e.g. ``1 min 54 s``."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def brief_duration_text(seconds: float) -> str:
    """A duration without parts of a second, where it is long enough."""
    return duration_text(round(seconds) if seconds >= 10 else round(seconds, 1))


def left_text(seconds: float, *, at_most: bool = False) -> str:
    """The time that something has left, e.g. ``about 1 min 20 s left``."""
    return f"{'at most' if at_most else 'about'} {brief_duration_text(seconds)} left"


def energy_text(joules: float) -> str:
    """An energy as people write it, e.g. ``59 mJ``."""
    value, unit = (1000 * joules, "mJ") if joules < 0.0995 else (joules, "J")
    return f"{value:.2g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"


def share_text(ratio: float) -> str:
    """A ratio as people write it before what it is of, e.g. ``1.4 % of`` or ``49 times``."""
    return f"{100 * ratio:.3g} % of" if ratio < 1.995 else f"{ratio:.3g} times"


def percent_text(ratio: float) -> str:
    """A share with two digits at least, e.g. ``0.41 %``, ``4.1 %`` or ``41 %``."""
    percent = 100 * ratio
    return f"{percent:.2g} %" if percent < 9.95 else f"{percent:.0f} %"


def perplexity_text(loss: float) -> str:
    """e to a loss per token, e.g. ``12.3``."""
    return f"{math.exp(min(loss, 69)):.3g}"


def header_text(contenders: Sequence[HeaderContender]) -> str:
    """The way that a cluster's header was found, and why; empty where nothing was compared.

    A language model's header is the one of the least loss, and of equal ones that of a classifier:
    where another has as many right answers, losses are told.
    """
    if len(contenders) < 2:
        return ""
    shipped, linear, *others = contenders
    by_loss = linear.accuracy > shipped.accuracy
    by_loss = by_loss or any(one.accuracy >= shipped.accuracy for one in others)

    def figure(one: HeaderContender) -> str:
        return f"{one.loss if by_loss else one.accuracy:.3f}"

    score = (
        f"{'a loss of ' * by_loss}{figure(shipped)} on the edge's held-out data, a linear header "
        f"{figure(linear)}"
    )
    if shipped.evaluated:
        return f"searched by {shipped.name}: {score}"
    for one in others:
        if one.evaluated:
            return (
                f"made by hand ({shipped.name}), better than what the search found: {score}, "
                f"{one.name} {figure(one)}"
            )
    return (
        f"made by hand ({shipped.name}), no search: {score}; with no better lead than the noise of "
        f"so few samples a search has nothing to gain"
    )


def accuracy_text(share: float | None) -> str:
    """A share of right answers, e.g. ``0.931``; a dash where it is not known."""
    return "–" if share is None else f"{share:.3f}"


def ten_lines_text(pooling: str | None) -> str:
    """The practitioner's rival, which has one name everywhere, with its gloss."""
    if pooling is None:
        return "ten lines (a logistic regression on the raw inputs)"
    pooled = pooling.replace("_", " and ")
    return f"ten lines (a logistic regression on the whole checkpoint in int8, pooled by {pooled})"
