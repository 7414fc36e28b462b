"""Choices of the language benchmarks: rules by validation texts, rivals by what they reach."""

from __future__ import annotations

import pytest

from acme_research.benchmarks.lm_bytes import smallest
from acme_research.benchmarks.lm_personalise import compared


def test_a_rule_is_chosen_by_validation_and_the_rival_by_test_texts():
    rows = {
        "a": [{"validation": 0.6, "exact": 0.9, "alone": 0.5, "FedAvg": 0.8}],
        "b": [{"validation": 0.7, "exact": 0.7, "alone": 0.6, "FedAvg": 0.6}],
        "c": [{"validation": 0.1, "exact": 1.0}],  # has no rivals of its own
    }
    gain, told = compared(rows)
    assert gain.tolist() == pytest.approx([-10.0])
    assert (told["rule"], told["rival"]) == ("b", "FedAvg of a")


@pytest.mark.parametrize(("wanted", "expected"), [(0.52, 0.07), (0.6, 0.1), (0.9, 1.0)])
def test_the_smallest_of_the_devices_within_three_points(wanted: float, expected: float):
    rows = [{"bytes": 0.1, "exact": 0.58}, {"bytes": 0.07, "exact": 0.5}]
    assert smallest({"limits": rows}, wanted) == expected
