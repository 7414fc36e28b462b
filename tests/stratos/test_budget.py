"""Hours and money: what a budget pays for, and what is counted over several starts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from acme_fleet.stratos.budget import Budget, Meter, Spent
from acme_fleet.stratos.request import Limits


def test_seconds_that_a_budget_pays_for():
    limits = Limits(max_training_usd=3, max_training_hours=2)
    assert Budget.of(limits, 2.0).seconds == 1.5 * 3600
    assert Budget.of(limits, 0.5).seconds == 2 * 3600
    assert Budget.of(limits, 0.0).seconds == 2 * 3600
    assert Budget.of(Limits(max_training_usd=3), 0.0).seconds == math.inf
    assert Budget.of(Limits(), 5.0).seconds == math.inf
    assert Budget(1.8).usd(100) == pytest.approx(0.05)


def test_a_meter_goes_on_and_tells_training_from_evaluation(tmp_path: Path):
    ticks = iter([12.0, 13.0, 100.0, 107.0])
    path, budget = tmp_path / "spent.json", Budget(3600.0, max_usd=20)
    first = Meter(path, budget, lambda: next(ticks), began=9.0)
    assert first.spent() == Spent(training=3.0)
    first.work = "evaluation"
    assert first.spent() == Spent(training=3.0, evaluation=1.0)
    first.keep()
    again = Meter(path, budget, lambda: next(ticks))
    assert again.left == pytest.approx(20 - 3 - 7)
