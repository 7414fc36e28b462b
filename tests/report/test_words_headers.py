"""The sentence that says how a cluster's header was found, and why."""

from __future__ import annotations

import pytest

from acme_fleet.messages.results import HeaderContender
from acme_fleet.report.words import header_text, left_text, percent_text


def contender(name: str, accuracy: float, evaluated: int = 0) -> HeaderContender:
    return HeaderContender(name=name, params=9, accuracy=accuracy, loss=1.0, evaluated=evaluated)


LINEAR = contender("linear", 0.5)


@pytest.mark.parametrize(
    ("first", "others", "words"),
    [
        (contender("random", 0.7, 84), [], ["searched by random: 0.700", "linear header 0.500"]),
        (
            contender("pointwise", 0.625),
            [contender("random", 0.6, 84)],
            ["by hand (pointwise)", "0.625", "better than what the search found", "random 0.600"],
        ),
        (contender("smallest", 0.51), [contender("mlp", 0.5)], ["no search: 0.510", "noise"]),
    ],
    ids=["searched", "searched in vain", "not searched"],
)
def test_what_ships_and_why(
    first: HeaderContender, others: list[HeaderContender], words: list[str]
) -> None:
    told = header_text([first, LINEAR, *others])
    assert all(word in told for word in words), told


def test_where_the_loss_decided_it_is_told() -> None:
    """A language model's header may ship with fewer right tokens than another one has."""
    more = contender("random", 0.78, 16).model_copy(update={"loss": 1.446})
    told = header_text([contender("pointwise", 0.7), LINEAR, more])
    assert "a loss of 1.000" in told
    assert "random 1.446" in told
    tie = header_text([contender("smallest", 0.5), LINEAR, contender("random", 0.5, 16)])
    assert "found: a loss of 1.000" in tie


def test_a_run_of_before_says_nothing() -> None:
    assert header_text([]) == ""


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0004, "0.04 %"), (0.0041, "0.41 %"), (0.0994, "9.9 %"), (0.0996, "10 %"), (1.14, "114 %")],
)
def test_a_share_has_two_digits(share: float, words: str) -> None:
    assert percent_text(share) == words


def test_the_time_left_in_words() -> None:
    assert left_text(9.96) == "about 10 s left"
    assert left_text(80, at_most=True) == "at most 1 min 20 s left"
