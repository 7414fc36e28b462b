"""Predictions against calculations by hand."""

from __future__ import annotations

import numpy as np
import pytest

from acme_fleet.stratos.predictors.duration import (
    answer_latency,
    answer_seconds,
    distillation_time,
    label_seconds,
    training_seconds,
)
from acme_fleet.stratos.predictors.estimate import Estimate
from acme_fleet.stratos.predictors.memory import (
    activation_bytes,
    cache_bytes,
    distillation_bytes,
    serving_bytes,
    training_bytes,
)
from acme_fleet.stratos.predictors.size import ModelSize, weights_bytes
from acme_fleet.stratos.predictors.speeds import KINDS, Speeds
from acme_fleet.stratos.request import Workload

_STUDENT = ModelSize(
    parameters=1000, products=900, layers=2, hidden=8, keys=4, neurons=16, vocabulary=10, context=64
)
_TEACHER = ModelSize(
    parameters=5000,
    products=5000,
    layers=3,
    hidden=16,
    keys=16,
    neurons=32,
    vocabulary=10,
    context=64,
)
_WORK = Workload(
    prompt_tokens=6,
    answer_tokens=4,
    training_questions=20,
    epochs=3,
    batch_size=8,
    label_batch=16,
)


def speeds(*, calibrated: bool = True) -> Speeds:
    """Two servers: 1,000 and 2,000 operations or bytes a second."""
    per_second = np.array([1000.0, 2000.0])
    return Speeds(
        per_second=dict.fromkeys(KINDS, per_second),
        layer_s={kind: np.full(2, 0.5) for kind in KINDS},
        parameter_s=dict(zip(KINDS, (np.full(2, 0.001), np.zeros(2), np.zeros(2)), strict=True)),
        error=dict(zip(KINDS, (np.full(2, 0.1), np.full(2, 0.2), np.full(2, 0.4)), strict=True)),
        memory_bytes=np.array([1e5, 2e5]),
        memory_factor=np.ones(2),
        memory_error=np.zeros(2),
        start_bytes=np.zeros(2),
        calibrated=np.full(2, calibrated),
    )


def test_weights():
    assert weights_bytes(_STUDENT, "float32") == 4000
    assert weights_bytes(_STUDENT, "int8") == 1000
    assert weights_bytes(_STUDENT, "int4") == 1000 * (0.5 + 2 / 32)


def test_memory_of_training():
    # A token keeps 2 layers × (10 × 8 + 4 × 16) + 3 × 10 = 318 numbers of 4 bytes.
    assert activation_bytes(_STUDENT, 1, 1) == 4 * 318
    assert activation_bytes(_STUDENT, 3, 5) == 15 * 4 * 318
    assert training_bytes(_STUDENT, 1, 1) == 12_000 + 4_000  # gradients are more
    assert training_bytes(_STUDENT, 3, 5) == 12_000 + 15 * 4 * 318  # activations are more
    alone = distillation_bytes(_STUDENT, _TEACHER, "float16", 3, 5, logits=False)
    assert alone == training_bytes(_STUDENT, 3, 5)
    beside = distillation_bytes(_STUDENT, _TEACHER, "float16", 3, 5, logits=True)
    assert beside - alone == 2 * 5000 + 2 * 4 * 15 * 10


def test_memory_of_serving():
    # Keys and values, 2 bytes a number, 2 layers, 4 numbers a token.
    assert cache_bytes(_STUDENT, 3, 10) == 2 * 2 * 2 * 4 * 30
    assert serving_bytes(_STUDENT, 4000.0, 3, 10) == 4000 + 960 + 4 * 3 * 10


def test_seconds_of_an_answer_are_bound_by_reading_or_by_computing():
    # Prompt: 2 × 900 × 6 = 10,800 operations; 2 layers of half a second each.
    prompt = 10_800 / 1000 + 1.0
    # A further token reads 4,000 bytes and a cache of 2 × 2 × 2 × 4 × (6 + 2) = 256.
    reading = 4256 / 1000 + 1.0
    found = answer_seconds(speeds(), _STUDENT, 4000.0, 6, 4)
    assert found[0] == pytest.approx(prompt + 3 * reading)
    assert found[1] == pytest.approx(10_800 / 2000 + 1.0 + 3 * (4256 / 2000 + 1.0))
    # With 100 at once: 2 × 900 × 100 operations take longer than 4,000 + 25,600 bytes.
    many = answer_seconds(speeds(), _STUDENT, 4000.0, 6, 4, sequences=100)
    assert many[0] == pytest.approx(1080 + 1 + 3 * 180)
    # One token comes with the prompt.
    assert answer_seconds(speeds(), _STUDENT, 4000.0, 6, 1)[0] == pytest.approx(prompt)


def test_seconds_of_training():
    # 20 questions in batches of 8 are 3 steps, three times; a step has 8 × 10 tokens.
    step = 6 * 900 * 80 / 1000 + 2 * 0.5 + 1000 * 0.001
    assert training_seconds(speeds(), _STUDENT, None, _WORK)[0] == pytest.approx(9 * step)
    teacher = 2 * 5000 * 80 / 1000 + 3 * 0.5
    by_logits = training_seconds(speeds(), _STUDENT, _TEACHER, _WORK)
    assert by_logits[0] == pytest.approx(9 * (step + teacher))
    labels = label_seconds(speeds(), _TEACHER, 10_000.0, _WORK)
    batch = answer_seconds(speeds(), _TEACHER, 10_000.0, 6, 4, 16)
    assert labels == pytest.approx(2 * batch)  # 20 questions, 16 at once
    answers = distillation_time(speeds(), _STUDENT, _TEACHER, 10_000.0, _WORK, logits=False)
    assert answers.value[0] == pytest.approx(9 * step + labels[0])


def test_estimates_have_a_unit_a_bar_and_a_source():
    found = answer_latency(speeds(), _STUDENT, 4000.0, _WORK)
    assert found.unit == "s"
    assert found.error.tolist() == [0.4, 0.4]  # the larger of prompt and tokens
    assert found.high == pytest.approx(1.4 * found.value)
    assert found.low == pytest.approx(found.value / 1.4)
    assert found.source(0) == "predicted"
    guessed = answer_latency(speeds(calibrated=False), _STUDENT, 4000.0, _WORK)
    assert guessed.source(1) == "not calibrated"


def test_an_exact_part_adds_no_error():
    time = Estimate(np.array([10.0, 0.0]), np.array([0.5, 0.5]), np.full(2, True), "h")
    cost = time.scaled(2.0, "USD").plus(10.0)
    assert cost.value.tolist() == [30.0, 10.0]
    assert cost.high.tolist() == [40.0, 10.0]
    assert cost.unit == "USD"
