"""Verification: what a wrong artifact does is found, and told with numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from acme_fleet.deploy.base import Inputs, Logits
from acme_fleet.deploy.samples import Evidence, Judged
from acme_fleet.deploy.verify import latency, verify
from acme_fleet.report.intervals import wilson

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (40, 2, 2, 1), np.uint8)
LABELS = PIXELS.reshape(40, 4).argmax(axis=1)
LENGTHS = np.arange(40) % 5 + 1
MASK = (np.arange(6) < LENGTHS[:, None]).astype(np.int64)
TEXTS = {"input_ids": DRAW.integers(1, 9, (40, 6)) * MASK, "attention_mask": MASK}


def by_brightness(inputs: Inputs) -> np.ndarray:
    return inputs["pixels"].reshape(-1, 4).astype(np.float32)


def by_words(inputs: Inputs) -> np.ndarray:
    real = inputs["input_ids"] * inputs["attention_mask"]
    return np.stack([real.sum(axis=1), (real > 4).sum(axis=1)], axis=1).astype(np.float32)


def found(artifact: Logits, pytorch: Logits, evidence: Evidence, precision: str = "float32"):
    return verify(artifact, pytorch, evidence, precision, forced=True)  # type: ignore[arg-type]


IMAGES = Evidence("validation", Judged({"pixels": PIXELS}, LABELS))


def test_what_is_equal_is_accepted():
    for run, evidence in (
        (by_brightness, IMAGES),
        (by_words, Evidence("random", Judged(TEXTS, None))),
    ):
        result = found(run, run, evidence)
        assert result.refusals == ()
        assert result.verification.largest_difference == 0
        assert result.verification.same_class == 1
        assert not result.verification.forced
    (accuracy,) = found(by_brightness, by_brightness, IMAGES).accuracy
    assert (accuracy.artifact, accuracy.pytorch, accuracy.samples) == (1, 1, 40)


def test_one_sample_is_lost_at_any_number_of_them():
    """Shares of samples are rounded: 21/22 − 20/22 is more than 1/22."""
    for samples in range(1, 41):
        labels = LABELS[:samples].copy()
        labels[0] = (labels[0] + 1) % 4  # the artifact's mistake, PyTorch's with another image

        def pytorch(inputs: Inputs, labels: np.ndarray = labels) -> np.ndarray:
            logits = by_brightness(inputs)
            first = (inputs["pixels"] == PIXELS[0]).reshape(len(logits), -1).all(axis=1)
            logits[first] = 255 * np.eye(4, dtype=np.float32)[labels[0]]
            return logits

        evidence = Evidence("validation", Judged({"pixels": PIXELS[:samples]}, labels))
        told = "; ".join(found(by_brightness, pytorch, evidence).refusals)
        assert "accuracy is" not in told


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: x + 1.0, "logits differ from PyTorch's by "),
        (lambda x: x * np.nan, "logits differ from PyTorch's by nan"),
        (lambda x: x + (len(x) == 1), "logits of one input differ from those in a batch by "),
        (lambda x: x[:, ::-1], "accuracy is 0.0000 and PyTorch's 1.0000 on 40 validation samples"),
    ],
)
def test_what_is_wrong_is_told(wrong, words: str):
    result = found(lambda inputs: wrong(by_brightness(inputs)), by_brightness, IMAGES)
    assert words in "; ".join(result.refusals)
    assert result.verification.forced


def test_padding_that_is_read_is_found():
    """One that is right at the width that PyTorch has seen, and counts the padding."""

    def careless(inputs: Inputs) -> np.ndarray:
        width = inputs["input_ids"].shape[1]
        return by_words(inputs) + np.float32(0 if width == 6 else width)

    result = found(careless, by_words, Evidence("random", Judged(TEXTS, None)))
    assert any("with padding" in refusal for refusal in result.refusals)


def test_rounding_is_allowed_what_it_needs_at_int8():
    noisy = np.random.default_rng(1)

    def rounded(inputs: Inputs) -> np.ndarray:
        exact = by_brightness(inputs)
        return exact + noisy.uniform(-1, 1, exact.shape).astype(np.float32)

    assert found(rounded, by_brightness, IMAGES, "int8").refusals == ()
    assert found(rounded, by_brightness, IMAGES, "float32").refusals != ()


def test_test_data_decide_nothing():
    wrong = Judged({"pixels": PIXELS}, (LABELS + 1) % 4)
    result = found(by_brightness, by_brightness, Evidence("validation", IMAGES.first, wrong))
    assert result.refusals == ()
    assert [one.artifact for one in result.accuracy] == [1, 0]


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 7), (7, 7), (1, 400), (399, 400)])
def test_interval_is_wilsons(right: int, count: int):
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_latency_is_of_one_input():
    seen = []

    def run(inputs: Inputs) -> np.ndarray:
        seen.append(inputs["input_ids"].shape)
        return by_words(inputs)

    measured = latency(run, run, Judged(TEXTS, None), threads=1)
    assert set(seen) == {(1, 2)}  # the first text has one word
    assert measured.median_ms > 0
    assert measured.machine
