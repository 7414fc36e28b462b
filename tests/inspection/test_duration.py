"""Expected duration of a run: the planned work at a measured speed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from acme_fleet.inspection.duration import expected_duration
from acme_fleet.inspection.plan import examine_whole
from acme_fleet.report.terminal.run import print_duration
from tiny_fleet import tiny


def _clock(step_s: float) -> Callable[[], float]:
    """Every look at it is ``step_s`` later than the last."""
    looks = count()
    return lambda: next(looks) * step_s


def _seconds(step_s: float, **changes: Any) -> tuple[float, float]:
    fleet = tiny(**changes)
    found = expected_duration(fleet, examine_whole(fleet), _clock(step_s))
    assert found is not None
    return found.seconds, found.needless_s


_DEVICES_S = 1.0 * len(tiny().devices)


def test_a_slower_machine_takes_longer_in_proportion():
    fast, slow = _seconds(1.0)[0], _seconds(3.0)[0]
    assert slow - _DEVICES_S == pytest.approx(3 * (fast - _DEVICES_S))


def test_a_larger_batch_in_the_same_time_is_a_faster_machine():
    """Batches grow until a step takes long enough to be measured."""
    short, long = _seconds(0.01)[0], _seconds(1.0)[0]
    batch = tiny().backbone.distillation.training.batch_size
    assert (long - _DEVICES_S) / (short - _DEVICES_S) == pytest.approx(100 * batch)


def test_more_epochs_take_longer_and_a_search_may_be_needless():
    training = {"epochs": 50, "batch_size": 32, "learning_rate": 0.002}
    assert _seconds(1.0, **{"reference.training": training})[0] > _seconds(1.0)[0]
    assert _seconds(1.0, **{"search.when": "always"})[1] == 0
    assert _seconds(1.0, **{"search.when": "useful"})[1] > 0


def test_nothing_is_told_of_a_gpu(capsys: pytest.CaptureFixture[str]):
    fleet = tiny()
    seen = examine_whole(fleet)
    assert expected_duration(fleet.model_copy(update={"accelerator": "cuda"}), seen) is None
    print_duration(None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "needless", "told"),
    [(24, 0, "10 s to 50 s"), (700, 0, "6 min to 23 min"), (8000, 6000, "17 min to 4 h 30 min")],
)
def test_a_range_in_round_numbers(
    seconds: float, needless: float, told: str, capsys: pytest.CaptureFixture[str]
):
    from acme_fleet.inspection.duration import Duration

    print_duration(Duration(seconds, needless))
    assert f"about {told} on this machine" in capsys.readouterr().out
