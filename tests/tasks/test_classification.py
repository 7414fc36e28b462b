"""Evaluations add up, and a task's losses, hits and counts are those of its labels alone."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import examine
from acme_fleet.tasks.base import ABSENT, Evaluation
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.registry import TASKS, task_of
from tiny_fleet import tiny

CLASSES = 5
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def draw(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of shape ``(batch, CLASSES, *positions)`` and labels."""
    generator = torch.Generator().manual_seed(seed)
    batch, *positions = shape
    outputs = torch.randn(batch, CLASSES, *positions, generator=generator)
    return outputs, torch.randint(CLASSES, shape, generator=generator)


@given(SIZES, st.integers(0, 2**32 - 1))
def test_evaluations_of_parts_add_up_to_that_of_the_whole(sizes: list[int], seed: int) -> None:
    outputs, labels = draw(sum(sizes), seed=seed)
    parts = [
        CLASSIFICATION.evaluation(*pair)
        for pair in zip(outputs.split(sizes), labels.split(sizes), strict=True)
    ]
    whole = CLASSIFICATION.evaluation(outputs, labels)
    for added in (sum(parts, Evaluation()), reduce(Evaluation.__add__, reversed(parts))):
        assert (added.hits, added.count) == (whole.hits, whole.count)
        assert added.losses == pytest.approx(whole.losses, rel=1e-5)
    assert whole.count == len(labels)
    assert whole.score == float((outputs.argmax(dim=1) == labels).double().mean())
    assert whole.loss == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-5)


def test_tokens_are_judged_one_by_one_and_places_without_a_label_not_at_all() -> None:
    """A batch of texts: every token has a label, but for the prompt and the padding."""
    outputs, labels = draw(3, 7)
    labels[0, 4:], labels[1, :2] = ABSENT, ABSENT
    rows = outputs.transpose(1, 2)[labels != ABSENT], labels[labels != ABSENT]
    whole, flat = CLASSIFICATION.evaluation(outputs, labels), CLASSIFICATION.evaluation(*rows)
    assert (whole.hits, whole.count) == (flat.hits, flat.count)
    assert whole.count == 16
    assert whole.losses == pytest.approx(flat.losses, rel=1e-6)
    torch.testing.assert_close(
        CLASSIFICATION.loss(outputs, labels), CLASSIFICATION.loss(*rows), rtol=1e-6, atol=0
    )
    assert not CLASSIFICATION.loss(outputs, labels, "none")[labels == ABSENT].any()


def test_each_row_is_evaluated_as_if_it_were_alone() -> None:
    """Rows are devices of a simulation, which differ in their number of samples."""
    outputs, labels = draw(4, 6)
    for row, count in enumerate((6, 1, 3, 5)):
        labels[row, count:] = ABSENT
    together = CLASSIFICATION.evaluations(outputs, labels)
    for row, result in enumerate(together):
        here = labels[row] != ABSENT
        alone = CLASSIFICATION.evaluation(outputs[row, :, here].T, labels[row, here])
        assert (result.hits, result.count) == (alone.hits, alone.count)
        assert result.losses == pytest.approx(alone.losses, rel=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "better", "scores_at_least"),
    [
        (Evaluation(1.0, 9, 10), Evaluation(5.0, 9, 10), True, True),
        (Evaluation(5.0, 9, 10), Evaluation(1.0, 9, 10), False, True),
        (Evaluation(9.0, 9, 10), Evaluation(1.0, 8, 10), True, True),
        (Evaluation(1.0, 4, 5), Evaluation(4.0, 8, 10), True, True),
        (Evaluation(1.0, 8, 10), Evaluation(1.0, 8, 10), False, True),
        (Evaluation(math.nan, 10, 10), Evaluation(1.0, 0, 10), False, False),
        (Evaluation(1.0, 0, 10), Evaluation(math.inf, 10, 10), True, False),
    ],
)
def test_the_score_decides_then_the_loss_and_numbers_before_all(
    one: Evaluation, other: Evaluation, better: bool, scores_at_least: bool
) -> None:
    assert one.better_than(other) is better
    assert one.scores_at_least(other) is scores_at_least


def test_an_unknown_task_is_refused_by_name_before_any_work() -> None:
    assert task_of("classification") is CLASSIFICATION
    assert tiny().task == "classification"
    fleet = tiny(task="clasification")
    assert Fleet.parse(fleet.model_dump(mode="json")) == fleet
    with pytest.raises(FleetError) as refused:
        examine(fleet)
    assert "task: there is no 'clasification'" in str(refused.value)
    assert all(name in str(refused.value) for name in TASKS)
