"""Constants that are fitted to measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_fleet.errors import FleetError
from acme_fleet.stratos.calibration import (
    Footprint,
    fit_memory,
    fit_rate,
    read_calibration,
    write_calibration,
)
from tiny_calibration import calibration, timings


def test_constants_are_found_again():
    rate, told = fit_rate(timings(), by_parameters=True)
    assert rate.per_second == pytest.approx(2e9, rel=1e-6)
    assert rate.layer_s == pytest.approx(0.01, rel=1e-6)
    assert rate.parameter_s == pytest.approx(1e-9, rel=1e-4)
    assert rate.error < 1e-6
    assert [t.left_out_s for t in told] == pytest.approx([t.seconds for t in told])
    rate, _ = fit_rate(timings(parameter_s=0.0), by_parameters=False)
    assert (rate.parameter_s, rate.layer_s) == (0.0, pytest.approx(0.01))


def test_constants_are_never_negative_and_the_error_is_of_what_was_left_out():
    rate, told = fit_rate(timings(layer_s=0.0, noise=0.2), by_parameters=True)
    assert rate.layer_s >= 0
    assert rate.error == pytest.approx(max(abs(t.left_out_s / t.seconds - 1) for t in told))
    assert rate.error > 0.2


def test_too_few_measurements_are_refused():
    with pytest.raises(ValueError, match="3 measurements"):
        fit_rate(timings()[:3], by_parameters=False)
    with pytest.raises(ValueError, match="2 measurements"):
        fit_memory([Footprint(model="m", predicted_bytes=1, bytes=1)] * 2, 0.0)


def test_memory_by_hand():
    found = calibration().memory
    # Medians without 90, 120, 150: 135, 120, 105 for a hundred predicted.
    assert (found.factor, found.start_bytes) == (1.2, 1000.0)
    assert found.error == pytest.approx(0.5)


def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    path, written = tmp_path / "here.yaml", calibration()
    write_calibration(written, path)
    assert read_calibration(path) == written
    with pytest.raises(FleetError, match="exists already"):
        write_calibration(written, path)
    path.write_text(path.read_text().replace("per_second: 5", "per_second: -5", 1))
    with pytest.raises(FleetError, match=r"here\.yaml: .*per_second"):
        read_calibration(path)
