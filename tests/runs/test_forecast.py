"""The time that a run has left: exact where speeds are constant, and by kind where they differ."""

from __future__ import annotations

import pytest

from acme_fleet.runs.forecast import Earlier, Expected, Forecast


def seconds_left(forecast: Forecast) -> float:
    left = forecast.left()
    assert left is not None
    return left.seconds


def test_at_one_speed_it_is_exact():
    """Ten operations a second, whatever the stage."""
    forecast = Forecast({"reference": Expected(1, 100), "round ": Expected(4, 200)})
    assert forecast.left() is None
    forecast.stage("cloud", "reference", 0.0, now=50.0)
    forecast.stage("cloud", "reference", 0.5, now=55.0)
    assert seconds_left(forecast) == pytest.approx(25)
    assert forecast.done == pytest.approx(50 / 300)
    forecast.stage("cloud", "reference", 1.0, now=60.0)
    forecast.stage("cam-1", "round 1", 0.0, now=60.0)
    forecast.stage("cam-1", "round 1", 1.0, now=65.0)
    assert seconds_left(forecast) == pytest.approx(15)


def test_a_kind_that_is_slower_than_planned_is_told_by_its_own_speed():
    forecast = Forecast({"reference": Expected(1, 100), "round ": Expected(4, 40)})
    forecast.stage("cloud", "reference", 0.0, now=0.0)
    forecast.stage("cloud", "reference", 1.0, now=10.0)
    assert seconds_left(forecast) == pytest.approx(4)
    forecast.stage("cam-1", "round 1", 0.0, now=10.0)
    forecast.stage("cam-1", "round 1", 1.0, now=20.0)  # ten times as slow
    assert seconds_left(forecast) == pytest.approx(30)


def test_the_longest_beginning_of_a_name_counts():
    forecast = Forecast({"elastic": Expected(1, 10), "elastic-more": Expected(1, 90)})
    forecast.stage("cloud", "elastic-more", 0.0, now=0.0)
    forecast.stage("cloud", "elastic-more", 1.0, now=9.0)
    assert forecast.done == pytest.approx(0.9)


def test_stages_that_nobody_expected_change_nothing():
    forecast = Forecast({"reference": Expected(1, 100)})
    forecast.stage("cloud", "other", 0.0, now=0.0)
    forecast.stage("cloud", "other", 1.0, now=100.0)
    assert (forecast.done, forecast.left()) == (0.0, None)


def test_more_stages_than_expected_are_no_more_than_all():
    forecast = Forecast({"round ": Expected(2, 100)})
    for number in range(5):
        forecast.stage(f"cam-{number}", "round 1", 0.0, now=float(number))
        forecast.stage(f"cam-{number}", "round 1", 1.0, now=number + 1.0)
    assert forecast.done == 1.0
    assert seconds_left(forecast) == 0.0


def test_a_run_that_goes_on_knows_what_was_done_and_how_fast():
    """Ten operations a second before the interruption, and after it."""
    expected = {"reference": Expected(1, 100), "elastic": Expected(1, 200)}
    earlier = Earlier({("cloud", "reference"): 10.0}, {("cloud", "elastic"): 8.0})
    forecast = Forecast(expected, earlier)
    assert seconds_left(forecast) == pytest.approx(20)
    forecast.stage("cloud", "elastic", 0.0, now=500.0)
    forecast.stage("cloud", "elastic", 0.5, now=502.0)
    assert seconds_left(forecast) == pytest.approx(10)
    forecast.stage("cloud", "reference", 0.0, now=510.0)  # its files were damaged: once more
    assert forecast.done == pytest.approx(100 / 300)


def test_a_search_that_may_not_be_needed_is_counted_until_that_is_known():
    expected = {"header search": Expected(2, 200, 180), "round ": Expected(1, 50)}
    forecast = Forecast(expected)
    forecast.stage("north", "header search", 0.0, now=0.0)
    assert forecast.at_most
    forecast.stage("north", "header search", 1.0, now=1.0)  # it searched for nothing
    assert forecast.at_most
    assert forecast.done == pytest.approx(10 / 160)
    assert seconds_left(forecast) == pytest.approx(15)
    forecast.stage("south", "header search", 0.0, now=1.0)
    forecast.stage("south", "header search", 0.5, now=6.0)
    assert not forecast.at_most
    assert forecast.done == pytest.approx(60 / 160)
    forecast.stage("south", "header search", 1.0, now=11.0)
    assert seconds_left(forecast) == pytest.approx(5)


def test_while_a_stage_says_nothing_its_own_time_passes_and_no_more():
    """Ten operations a second: 5 s of the stage, and 10 s of another behind it."""
    forecast = Forecast({"reference": Expected(1, 100), "round ": Expected(2, 100)})
    forecast.stage("cloud", "reference", 0.0, now=0.0)
    forecast.stage("cloud", "reference", 0.5, now=5.0)
    left = forecast.left()
    assert left is not None
    assert [left.after(silence) for silence in (0, 3, 5, 60)] == pytest.approx([15, 12, 10, 10])
    forecast.stage("cloud", "reference", 1.0, now=10.0)
    forecast.stage("cam-1", "round 1", 0.0, now=10.0)
    left = forecast.left()
    assert left is not None
    assert (left.seconds, left.later_s) == pytest.approx((10, 5))


def test_stages_that_no_longer_come_are_not_waited_for():
    """A shape that was tried for all its epochs is not recovered any further."""
    expected = {
        "elastic": Expected(1, 100),
        "recovered-": Expected(2, 100, until="header search"),
        "header search": Expected(1, 50),
    }
    forecast = Forecast(expected)
    forecast.stage("cloud", "elastic", 0.0, now=0.0)
    forecast.stage("cloud", "elastic", 1.0, now=10.0)
    assert seconds_left(forecast) == pytest.approx(15)
    forecast.stage("north", "header search", 0.0, now=10.0)
    assert seconds_left(forecast) == pytest.approx(5)
    assert forecast.done == pytest.approx(100 / 150)
