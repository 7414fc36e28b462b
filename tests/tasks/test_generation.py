"""The next token: the loss on tokens that have labels, through a language head or not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.tasks.base import ABSENT, Evaluation
from acme_fleet.tasks.generation import GENERATION
from tiny_language import language_settings


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 7, generator=draw)
    head = torch.randn(11, 5, generator=draw)
    labels = torch.randint(11, (3, 7), generator=draw)
    labels[0, 4:] = ABSENT
    labels[1, :3] = ABSENT
    return states, head, labels


def test_loss_is_the_mean_over_tokens_with_labels():
    states, head, labels = _batch()
    logits = torch.einsum("vh,bht->bvt", head, states)
    expected = F.cross_entropy(logits, labels, ignore_index=ABSENT)
    assert GENERATION.loss(logits, labels) == pytest.approx(float(expected), rel=1e-6)
    assert GENERATION.through(head).loss(states, labels) == pytest.approx(float(expected), rel=1e-5)
    each = GENERATION.loss(logits, labels, "none")
    assert each.shape == labels.shape
    assert not each[labels == ABSENT].any()
    assert float(each.sum()) == pytest.approx(float(GENERATION.loss(logits, labels, "sum")), 1e-6)


def test_evaluations_count_tokens_and_compare_by_the_loss():
    states, head, labels = _batch()
    found = GENERATION.through(head).evaluation(states, labels)
    logits = torch.einsum("vh,bht->bvt", head, states)
    assert found.count == int((labels != ABSENT).sum())
    assert found.hits == float(GENERATION.hits(logits, labels).sum())
    assert found.reward == pytest.approx(math.exp(-found.loss))
    fewer_hits = Evaluation(found.losses - 1, found.hits - 1, found.count, by_loss=True)
    assert fewer_hits.better_than(found)
    assert not found.scores_at_least(fewer_hits)
    assert (Evaluation() + found).by_loss


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"devices_at_once": 2}, "devices_at_once: 2"),
        (
            {"personalization.classifier": "holders", "personalization.mix": "both"},
            "personalization.classifier: holders",
        ),
        ({"reference.recipe": "contrastive"}, "reference.recipe"),
        ({"reference.pooling": "first_mean"}, "reference.pooling: first_mean"),
        (
            {"search.backbone_learning_rate": 0.1, "backbone.precisions": ["float32"]},
            "search.backbone_learning_rate: 0.1",
        ),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(
    tmp_path: Any, changes: dict[str, Any], setting: str
):
    fleet = Fleet.parse(language_settings(tmp_path / "x", tmp_path, **changes))
    with pytest.raises(FleetError, match=f"{setting}.* is not supported by task: generation"):
        GENERATION.check(fleet)


def test_the_task_and_its_data_go_together(tmp_path: Any):
    with pytest.raises(FleetError, match=r"task: generation and data\.source: language go tog"):
        Fleet.parse(language_settings(tmp_path, tmp_path, **{"data.source": "text"}))
