"""One vector for an input: the four ways to pool, padding, and a sentence encoder's own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.config.backbone import Pooling
from acme_fleet.errors import FleetError
from acme_fleet.models.pooling import pool, pooled_size, pooling_of_checkpoint

_WAYS: tuple[Pooling, ...] = get_args(Pooling)


@given(
    st.sampled_from(_WAYS),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 2**31),
)
def test_padding_on_either_side_changes_nothing(
    pooling: Pooling, real: int, left: int, right: int, seed: int
):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(2, left + real + right, 3, generator=draw)
    mask = torch.zeros(2, left + real + right, dtype=torch.int64)
    mask[:, left : left + real] = 1
    alone = pool(states[:, left : left + real], mask[:, left : left + real], pooling, 0)
    assert torch.allclose(pool(states, mask, pooling, 0), alone, atol=1e-6)
    assert alone.shape == (2, pooled_size(pooling, 3))


def test_what_each_way_takes():
    states = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[0, 1, 1, 0]])
    assert pool(states, mask, "first", 0).tolist() == [[3, 4, 5]]
    assert pool(states, mask, "last", 0).tolist() == [[6, 7, 8]]
    assert pool(states, mask, "mean", 0).tolist() == [[4.5, 5.5, 6.5]]
    assert pool(states, mask, "first_mean", 0).tolist() == [[3, 4, 5, 4.5, 5.5, 6.5]]


def test_the_mean_of_an_image_is_that_of_its_patches():
    states = torch.tensor([[[100.0], [1.0], [3.0]]])
    assert pool(states, None, "mean", 1).item() == 2
    assert pool(states, None, "first", 1).item() == 100


def test_a_text_without_tokens_is_zero_on_the_mean():
    assert pool(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), "mean", 0).sum() == 0


def _write(folder: Path, **content: object) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    return folder


def test_the_file_of_a_sentence_encoder_is_read(tmp_path: Path):
    assert pooling_of_checkpoint(tmp_path, 8) is None
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    _write(tmp_path, word_embedding_dimension=8, **modes)
    assert pooling_of_checkpoint(tmp_path, 8) == "mean"
    with pytest.raises(FleetError, match=r"word_embedding_dimension is 8, the model has 16"):
        pooling_of_checkpoint(tmp_path, 16)


@pytest.mark.parametrize(
    "content",
    [
        {"word_embedding_dimension": 8, "pooling_mode_max_tokens": True},
        {"word_embedding_dimension": 8},
        {"pooling_mode_mean_tokens": True},
        [],
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(tmp_path: Path, content: object):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    with pytest.raises(FleetError, match="1_Pooling"):
        pooling_of_checkpoint(tmp_path, 8)


def test_first_and_mean_together(tmp_path: Path):
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    _write(tmp_path, word_embedding_dimension=8, **modes)
    assert pooling_of_checkpoint(tmp_path, 8) == "first_mean"
