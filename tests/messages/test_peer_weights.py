"""Ŵ as a matrix, sparse, and alike for all: the same weights give the same sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from acme_fleet.messages.peer_weights import (
    Alike,
    among,
    column,
    from_lists,
    to_lists,
    weighted_sums,
)

COUNT = 7
VALUES = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(0))


def _matrix() -> np.ndarray:
    draw = np.random.default_rng(0)
    matrix = draw.random((COUNT, COUNT)) * (draw.random((COUNT, COUNT)) < 0.4)
    np.fill_diagonal(matrix, 1.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _forms() -> list[tuple[np.ndarray, csr_array | Alike]]:
    """Matrices, and the same weights in the forms of large clusters."""
    matrix = _matrix()
    return [
        (matrix, csr_array(matrix)),
        (np.full((COUNT, COUNT), 1 / COUNT), Alike(np.ones(COUNT))),
    ]


@pytest.mark.parametrize(("matrix", "other"), _forms(), ids=["sparse", "alike"])
def test_every_form_gives_the_sums_and_columns_of_the_matrix(
    matrix: np.ndarray, other: csr_array | Alike
) -> None:
    found = weighted_sums(other, VALUES)
    assert found.dtype == VALUES.dtype
    torch.testing.assert_close(found, weighted_sums(matrix, VALUES))
    for number in range(COUNT):
        np.testing.assert_allclose(column(other, number), matrix[:, number])


@pytest.mark.parametrize(("matrix", "other"), _forms(), ids=["sparse", "alike"])
def test_every_form_renormalises_alike_among_some_of_any_freshness(
    matrix: np.ndarray, other: csr_array | Alike
) -> None:
    index, fresh = [6, 0, 3], [1.0, 0.25, 0.0]
    for freshness in (None, fresh):
        expected = weighted_sums(among(matrix, index, freshness), VALUES[index])
        found = weighted_sums(among(other, index, freshness), VALUES[index])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["matrix", "sparse", "alike"])
def test_lists_hold_every_form(form: str) -> None:
    weights = {"matrix": _matrix(), "sparse": csr_array(_matrix()), "alike": Alike(np.ones(COUNT))}
    again = from_lists(COUNT, *to_lists(weights[form]))
    assert type(again) is type(weights[form])
    torch.testing.assert_close(
        weighted_sums(again, VALUES), weighted_sums(weights[form], VALUES), rtol=0, atol=0
    )
