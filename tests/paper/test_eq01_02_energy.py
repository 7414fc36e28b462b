"""Eq. 1-2: power, latency and energy of a candidate, and constants from measurements."""

import numpy as np
import pytest

from acme_fleet.config.devices import Energy
from acme_fleet.cost.energy import (
    energy_j,
    fit_latency,
    fit_latency_with_depth,
    fit_power,
    latency_s,
    power_w,
    worst_energy_j,
)

WIDTHS, DEPTHS = (a.ravel() for a in np.meshgrid([0.25, 0.5, 0.75, 1.0], [1, 3, 6, 12]))
DEVICE = Energy(
    power_w=3,
    power_per_layer_w=0.5,
    batch_power_w=0.01,
    latency_s=0.02,
    latency_per_layer_s=0.004,
    epochs=7,
)


def test_by_hand() -> None:
    # w·d = 3: P = 3 + 0.5·3 + 100·0.01 = 5.5 W, T = 0.02 + 0.004·3 = 0.032 s, k = 7.
    assert power_w(DEVICE, 0.5, 6, patches=100) == pytest.approx(5.5)
    assert latency_s(DEVICE, 0.5, 6) == pytest.approx(0.032)
    assert energy_j(DEVICE, 0.5, 6, patches=100) == pytest.approx(7 * 5.5 * 0.032)


def test_depth_term_is_the_same_for_every_width() -> None:
    with_term = DEVICE.model_copy(update={"latency_per_depth_s": 0.5})
    for width in (0.1, 1.0):
        added = latency_s(with_term, width, 3) - latency_s(DEVICE, width, 3)
        assert added == pytest.approx(1.5)


def test_precision_changes_the_latency_of_the_layers_alone() -> None:
    rounded = DEVICE.model_copy(update={"int8": 0.25, "latency_per_depth_s": 0.5})
    # L = 0.02 s, and at w·d = 3, d = 6 the layers take 0.004·3 + 0.5·6 s in float32.
    layers = 0.004 * 3 + 0.5 * 6
    assert latency_s(rounded, 0.5, 6) == pytest.approx(0.02 + layers)
    assert latency_s(rounded, 0.5, 6, "int8") == pytest.approx(0.02 + 0.25 * layers)
    assert latency_s(rounded, 0.5, 6, "int4") == pytest.approx(0.02 + layers)
    mixed = ["int8", "float32", "int8", "float16"]
    found = energy_j(rounded, WIDTHS[:4], DEPTHS[:4], 64, mixed)
    for at, precision in enumerate(mixed):
        alone = energy_j(rounded, float(WIDTHS[at]), int(DEPTHS[at]), 64, precision)
        assert found[at] == pytest.approx(float(alone))


def test_arrays_equal_one_by_one() -> None:
    together = energy_j(DEVICE, WIDTHS, DEPTHS, patches=64)
    alone = [
        float(energy_j(DEVICE, float(w), int(d), 64)) for w, d in zip(WIDTHS, DEPTHS, strict=True)
    ]
    np.testing.assert_array_equal(together, alone)
    assert energy_j(DEVICE, WIDTHS[:4, None], DEPTHS[None, ::4], 64).shape == (4, 4)


def test_proportional_constants_scale_the_energy() -> None:
    """ΔG, G^β ∝ G and ΔL ∝ L (last line of Eq. 2): devices differ by one factor."""
    double = DEVICE.model_copy(
        update={"power_w": 6, "power_per_layer_w": 1.0, "batch_power_w": 0.02, "epochs": 21}
    )
    ratio = energy_j(double, WIDTHS, DEPTHS, 64) / energy_j(DEVICE, WIDTHS, DEPTHS, 64)
    np.testing.assert_allclose(ratio, 6.0)


def test_worst_device_may_differ_between_candidates() -> None:
    idle = Energy(power_w=9, power_per_layer_w=0, latency_s=0.1, latency_per_layer_s=0)
    busy = Energy(power_w=1, power_per_layer_w=4, latency_s=0.01, latency_per_layer_s=0.05)
    one, other = (energy_j(device, WIDTHS, DEPTHS, 16) for device in (idle, busy))
    worst = worst_energy_j([idle, busy, idle], WIDTHS, DEPTHS, 16)
    assert (worst == one).any()
    assert (worst == other).any()
    np.testing.assert_array_equal(worst, np.where(one > other, one, other))


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_fit_recovers_the_constants(noise: float) -> None:
    generator = np.random.default_rng(0)
    factor = 1 + noise * generator.standard_normal(WIDTHS.shape)
    latency = fit_latency(WIDTHS, DEPTHS, factor * latency_s(DEVICE, WIDTHS, DEPTHS))
    assert latency.base == pytest.approx(0.02, rel=1e-9 + 5 * noise)
    assert latency.per_layer == pytest.approx(0.004, rel=1e-9 + 5 * noise)
    assert latency.per_depth == 0
    assert latency.max_relative_error <= 1e-9 + 5 * noise
    assert latency.r_squared > 0.99
    assert (latency.max_relative_error > 1e-4) == (noise > 0)

    power = fit_power(WIDTHS, DEPTHS, factor * power_w(DEVICE, WIDTHS, DEPTHS, patches=64))
    assert power.base == pytest.approx(3 + 64 * 0.01, rel=1e-9 + 5 * noise)
    assert power.per_layer == pytest.approx(0.5, rel=1e-9 + 5 * noise)


def test_depth_term_is_found_where_there_is_one() -> None:
    seconds = 0.01 + 0.003 * WIDTHS * DEPTHS + 0.002 * DEPTHS
    with_depth = fit_latency_with_depth(WIDTHS, DEPTHS, seconds)
    found = (with_depth.base, with_depth.per_layer, with_depth.per_depth)
    assert found == pytest.approx((0.01, 0.003, 0.002))
    without = fit_latency(WIDTHS, DEPTHS, seconds)
    assert without.r_squared < with_depth.r_squared == pytest.approx(1.0)
    assert without.max_relative_error > 0.1


def test_fitted_constants_are_not_negative() -> None:
    """The straight line through these points meets w·d = 0 below zero: ``Energy`` refuses that."""
    widths, depths = np.ones(3), np.array([1, 2, 3])
    fit = fit_latency(widths, depths, np.array([0.1, 1.0, 2.0]))
    Energy(latency_s=fit.base, latency_per_layer_s=fit.per_layer)
    # Least squares through the origin, since the base is zero: Σ d·t / Σ d².
    assert (fit.base, fit.per_layer) == pytest.approx((0.0, 8.1 / 14))


def test_measurements_that_cannot_be_fitted_are_refused() -> None:
    same = np.array([0.5, 1.0]), np.array([4, 2]), np.array([0.1, 0.2])
    with pytest.raises(ValueError, match="2 measurements do not determine 2 constants"):
        fit_latency(*same)
    with pytest.raises(ValueError, match="do not determine 3 constants"):
        fit_latency_with_depth(np.array([0.5, 1.0]), np.array([2, 4]), np.array([0.1, 0.2]))
    for wrong in (np.nan, np.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match="measurement 1, "):
            fit_latency(np.ones(3), np.arange(1, 4), np.array([0.1, wrong, 0.3]))
