"""Sketches, noise and its accounting: what a device does to its messages before they leave it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from acme_fleet.config.personalization import Privacy
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.privacy.accounting import epsilon, privacy_loss
from acme_fleet.privacy.noise import (
    clipped,
    device_secret,
    gaussian_mechanism,
    projection,
    protect_features,
    protect_importance,
    quantize,
)

SECRET = bytes(range(32))
ROWS = np.random.default_rng(0).normal(size=(40, 96))


# --- sketches ---------------------------------------------------------------------------------


def test_a_sketch_is_the_same_for_a_seed_and_another_for_another():
    privacy = Privacy(sketch_dim=16)
    one = protect_features(ROWS, privacy, 3, SECRET)
    assert one.shape == (40, 16)
    np.testing.assert_array_equal(one, protect_features(ROWS, privacy, 3, b"another secret"))
    assert np.abs(one - protect_features(ROWS, privacy, 4, SECRET)).max() > 0.1


def test_a_projection_keeps_l2_norms_and_turns_l2_into_l1():
    drawn = np.concatenate([ROWS @ projection(96, 64, seed) for seed in range(30)])
    true = np.tile(np.linalg.norm(ROWS, axis=1), 30)
    assert np.mean(np.linalg.norm(drawn, axis=1) ** 2 / true**2) == pytest.approx(1, abs=0.02)
    l1 = np.abs(drawn).sum(axis=1) / true
    assert l1.mean() == pytest.approx(math.sqrt(2 * 64 / math.pi), rel=0.02)


def test_nothing_is_done_by_default():
    features = protect_features(ROWS, Privacy(), 0, SECRET)
    sent = quantize(features, Privacy().sketch_bits)
    assert sent.scale == 1.0
    assert torch.equal(sent.values, torch.from_numpy(ROWS).half())


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6))
def test_eight_bits_are_off_by_half_a_step_at_most(seed: int, size: float):
    rows = size * np.random.default_rng(seed).normal(size=(3, 5))
    sent = quantize(rows, 8)
    assert sent.values.dtype == torch.int8
    assert np.abs(sent.values.double().numpy() * sent.scale - rows).max() <= 0.501 * sent.scale


def test_nothing_but_zeros_can_be_quantized():
    assert not quantize(np.zeros((2, 3)), 8).values.any()


# --- noise ------------------------------------------------------------------------------------


def test_noise_is_gaussian_and_as_large_as_accounted():
    clean = np.zeros(40_000)
    noise = gaussian_mechanism(clean, sensitivity=2.0, multiplier=1.5, secret=SECRET)
    assert stats.kstest(noise / 3.0, "norm").pvalue > 0.01
    assert noise.std() == pytest.approx(3.0, rel=0.02)
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02


def test_noise_depends_on_the_secret_and_on_what_it_hides():
    clean = ROWS[0]

    def noise(values: np.ndarray, secret: bytes, size: float = 1.0) -> np.ndarray:
        return gaussian_mechanism(values, 1.0, size, secret) - values

    # Asked again: the same answer. Otherwise the mean of many answers would lose the noise.
    np.testing.assert_array_equal(noise(clean, SECRET), noise(clean, SECRET))
    # Another vector or size: other noise. Otherwise two answers together would have none.
    others = (clean + 1e-12, SECRET), (clean, SECRET[::-1]), (clean, SECRET, 2.0)
    for other in (noise(*arguments) for arguments in others):
        assert abs(np.corrcoef(noise(clean, SECRET), other)[0, 1]) < 0.4


def _noise_of_features(rows: np.ndarray, multiplier: float, clip: float) -> np.ndarray:
    privacy = Privacy(feature_noise=multiplier, feature_clip=clip)
    return protect_features(rows, privacy, 0, SECRET) - clipped(rows, clip * math.sqrt(96))


def test_the_noise_of_features_is_that_of_one_replaced_row():
    rows = np.random.default_rng(1).normal(size=(400, 96))
    assert np.linalg.norm(clipped(10 * rows, 2.0), axis=1).max() <= 2.0 + 1e-12
    np.testing.assert_allclose(clipped(rows, 1e3), rows)
    expected = 0.7 * 2 * 1.3 * math.sqrt(96)
    assert _noise_of_features(rows, 0.7, 1.3).std() == pytest.approx(expected, rel=0.02)


def test_a_noisy_sketch_has_noise_in_the_sketch_alone():
    privacy = Privacy(sketch_dim=8, feature_noise=1e-9, feature_clip=1e3)
    noisy = protect_features(ROWS, privacy, 5, SECRET)
    plain = protect_features(ROWS, Privacy(sketch_dim=8), 5, SECRET)
    np.testing.assert_allclose(noisy, plain, atol=1e-3)


def test_noisy_importance_is_a_set_of_sum_one_of_the_same_shapes():
    own = ImportanceSet.of({"a": torch.rand(7), "b": torch.rand(3)})
    for multiplier in (1e-9, 1.0, 1e3):
        noisy = protect_importance(own, multiplier, SECRET)
        assert noisy.layers == own.layers
        assert [len(values) for values in noisy.values] == [7, 3]
        assert bool((noisy.flat() >= 0).all())
        assert noisy.total() == pytest.approx(1, abs=1e-6)
        if multiplier < 1e-6:
            assert noisy.is_close(own.normalized())


def test_importance_noise_is_that_of_two_sets_with_nothing_in_common():
    apart = np.eye(5)[:2]  # the two sets of norm 1 that are farthest apart
    assert np.linalg.norm(apart[0] - apart[1]) == pytest.approx(math.sqrt(2))
    # A set far above its noise: nothing is cut off at zero.
    ones = ImportanceSet.of({"a": torch.ones(20_000)})
    noisy = protect_importance(ones, 1e-3, SECRET).flat()
    before_scaling = noisy * 20_000 / math.sqrt(20_000)
    assert float(before_scaling.std()) == pytest.approx(1e-3 * math.sqrt(2), rel=0.02)
    scaled = protect_importance(7 * ones, 1e-3, SECRET).flat()
    assert float(scaled.std()) == pytest.approx(float(noisy.std()), rel=0.02)


# --- the secret -------------------------------------------------------------------------------


def test_a_device_keeps_its_secret_and_shares_it_with_nobody(tmp_path: Path):
    one = device_secret(tmp_path / "one" / "secret")
    assert one == device_secret(tmp_path / "one" / "secret") != device_secret(tmp_path / "two")
    assert len(one) == 32
    assert (tmp_path / "one" / "secret").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["secret"]


# --- accounting -------------------------------------------------------------------------------


def _closed_form(multiplier: float, delta: float) -> float:
    """ε of one Gaussian mechanism, Theorem 8 of Balle and Wang (2018), solved for ε."""
    mu = 1 / multiplier

    def excess(eps: float) -> float:
        far = stats.norm.logcdf(-mu / 2 - eps / mu)
        return float(stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps + far) - delta)

    return optimize.brentq(excess, 0.0, 500.0, xtol=1e-10)


@pytest.mark.parametrize("multiplier", [0.4, 1.0, 3.7, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_epsilon_of_one_mechanism_is_the_closed_form(multiplier: float, delta: float):
    pytest.importorskip("dp_accounting")
    assert epsilon([multiplier], delta) == pytest.approx(_closed_form(multiplier, delta), abs=1e-6)


def test_mechanisms_compose_as_the_library_composes_them():
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(accounting.GaussianDpEvent(2.0))
    accountant.compose(accounting.GaussianDpEvent(4.0), 3)
    found = epsilon([2.0, 4.0, 4.0, 4.0], 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)


def test_a_device_loses_more_than_a_sample_and_nothing_is_promised_without_noise():
    pytest.importorskip("dp_accounting")
    whole = privacy_loss(Privacy(feature_noise=3, importance_noise=3), rows=16, rounds=2)
    assert whole.features == pytest.approx(epsilon([3.0], 1e-5))
    assert whole.importance == pytest.approx(epsilon([3.0, 3.0], 1e-5))
    assert whole.sample == pytest.approx(epsilon([3.0] * 3, 1e-5))
    assert whole.device == pytest.approx(epsilon([3.0] * 18, 1e-5))  # 16 rows as one vector
    open_weights = privacy_loss(
        Privacy(feature_noise=3, importance_noise=3), rows=16, rounds=2, weights=True
    )
    assert (open_weights.sample, open_weights.device) == (None, None)
    assert (open_weights.features, open_weights.importance) == (whole.features, whole.importance)
    half = privacy_loss(Privacy(importance_noise=3), rows=16, rounds=2)
    assert (half.features, half.sample, half.device) == (None, None, None)
    assert half.importance == whole.importance
