"""Robust aggregation: three of ten lie within every bound, and the mixture stays sound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from acme_fleet.config.personalization import Personalization
from acme_fleet.messages.peer_weights import weighted_sums
from acme_fleet.personalization.robust import ROBUST, krum, made_robust, median, trimmed

COUNT, NUMBERS, LIARS = 10, 40, 3
EQUAL = np.full((COUNT, COUNT), 1 / COUNT)


def _honest() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    middle = torch.randn(NUMBERS, generator=draw)
    return middle + 0.2 * torch.randn(COUNT, NUMBERS, generator=draw)


def _turned(sent: Tensor) -> Tensor:
    """The last three send the opposite, as long as the longest that is not shortened."""
    lying = sent.clone()
    lying[-LIARS:] = -2 * sent[-LIARS:]
    return lying


def _mixed(sent: Tensor, name: str) -> Tensor:
    settings = Personalization.model_validate({"robust": name, "robust_share": 0.3})
    rows, weights = made_robust(settings, sent, EQUAL)
    return weighted_sums(weights, rows)[:-LIARS].mean(dim=0)


@pytest.mark.parametrize("name", ROBUST)
def test_three_liars_of_ten_move_no_robust_mixture(name: str) -> None:
    sent = _honest()
    aim, lying = sent[:-LIARS].mean(dim=0), _turned(sent)
    plain, robust = (torch.linalg.vector_norm(_mixed(lying, n) - aim) for n in ("none", name))
    assert float(robust) < 0.35 * float(plain)
    spread = torch.linalg.vector_norm(sent[0] - aim)
    assert float(robust) < float(spread)


@pytest.mark.parametrize("name", ROBUST)
def test_where_nobody_lies_little_changes(name: str) -> None:
    sent = _honest()
    apart = torch.linalg.vector_norm(_mixed(sent, name) - sent.mean(dim=0))
    assert float(apart) < float(torch.linalg.vector_norm(sent[0] - sent.mean(dim=0)))


def test_none_changes_nothing() -> None:
    rows, weights = made_robust(Personalization(), _turned(_honest()), EQUAL)
    assert rows.equal(_turned(_honest()))
    assert weights is EQUAL


def test_krum_leaves_out_as_many_as_may_lie_and_those() -> None:
    assert krum(_turned(_honest()), 0.3).tolist() == [True] * 7 + [False] * 3
    assert krum(torch.zeros(3, 2), 0.3).all()  # too few devices to tell anybody


def test_a_number_is_moved_into_the_range_of_the_middle_devices() -> None:
    sent = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
    assert trimmed(sent, 0.2)[:, 0].tolist() == [1, 1, 2, 3, 3]
    assert trimmed(sent, 0.49)[:, 0].tolist() == [2] * 5
    assert median(sent, 0.3)[:, 0].tolist() == [2] * 5


def test_what_is_hidden_cannot_be_compared() -> None:
    with pytest.raises(ValidationError, match="robust: krum compares what devices send"):
        Personalization.model_validate({"robust": "krum", "privacy": {"masking": True}})
