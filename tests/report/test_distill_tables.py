"""Tables of a calibration."""

from __future__ import annotations

import pytest

from acme_fleet.report.terminal.distill import print_calibration
from tiny_calibration import calibration


def test_a_calibration_shows_predicted_against_measured(capsys: pytest.CaptureFixture[str]):
    print_calibration(calibration())
    words = " ".join(capsys.readouterr().out.split())
    assert "a processor, float32: a large matrix product 3 GFLOP/s, a large copy 1 GB/s" in words
    assert "│ training │ 2 GFLOP │ 0.67 │ 10 ms │ 0% │" in words
    assert "│ decoding │ 0.5 GB │ 0.50 │ 1 ms │ 10% │" in words
    assert "│ memory │ │ │ × 1.2 │ 50% │" in words
    assert "│ memory │ m │ 90 B │ 120 B │ 1.33 │" in words
