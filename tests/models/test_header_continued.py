"""A causal header token by token is the header on the whole text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from acme_fleet.messages.header_plan import OPERATIONS, Block, Genotype, HeaderPlan
from acme_fleet.models.header.continued import Continued
from acme_fleet.models.header.module import Header, build_header

HIDDEN = 5


def _header(genotype: Genotype, seed: int) -> Header:
    plan = HeaderPlan(genotype=genotype, hidden=HIDDEN, classes=HIDDEN, axes=1, pooled=0)
    draw = torch.Generator().manual_seed(seed)
    shapes, exact = plan.shapes().items(), torch.float64  # rounding of large sums aside
    return build_header(plan, {n: torch.randn(s, generator=draw, dtype=exact) for n, s in shapes})


@st.composite
def _genotypes(draw: st.DrawFn) -> Genotype:
    operation = st.sampled_from(OPERATIONS[:7])
    blocks = tuple(
        Block(
            inputs=(draw(st.integers(0, number + 1)), draw(st.integers(0, number + 1))),
            operations=(draw(operation), draw(operation)),
        )
        for number in range(draw(st.integers(1, 3)))
    )
    return Genotype(blocks=blocks, cells=draw(st.integers(1, 3)), channels=3)


@settings(max_examples=40, deadline=None)
@given(
    _genotypes(),
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.integers(0, 2**16),
)
def test_tokens_one_by_one_are_the_text_at_once(
    genotype: Genotype, parts: list[int], before: tuple[int, int], seed: int
):
    header, tokens = _header(genotype, seed), sum(parts)
    whole = Continued(header)
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 2, HIDDEN, max(before) + tokens, generator=draw).double()
    # Two texts, each after some padding.
    width = maps.shape[-1]
    starts = torch.tensor(before)[:, None]
    real = torch.arange(width) >= starts
    last, penultimate = (each.masked_fill(~real[:, None], 0.0) for each in maps)
    places = (torch.arange(width) - starts).clamp_min(0)
    mask = F.pad(real, (whole.room, 0))[:, None]
    memory, rows, start = torch.zeros(2, whole.channels, whole.room).double(), [], 0
    for part in [max(before), *parts] if max(before) else parts:
        here = slice(start, start + part)
        window = mask[..., start : start + whole.room + part]
        changed, new = whole(
            last[..., here], penultimate[..., here], window, places[:, here], memory
        )
        rows.append(changed)
        memory = torch.cat([memory, new], dim=2)[..., part : part + whole.room]
        start += part
    found = torch.cat(rows, dim=2)
    for row, begin in enumerate(before):
        text = [each[row : row + 1, :, begin:] for each in (last, penultimate)]
        alone = header(*text, torch.empty(1, 0))
        torch.testing.assert_close(found[row : row + 1, :, begin:], alone, rtol=1e-9, atol=1e-9)


def test_what_nobody_reads_again_is_not_remembered():
    here = Block(inputs=(0, 0), operations=("conv1", "identity"))
    none = Continued(_header(Genotype(blocks=(here,), cells=1, channels=3), 0))
    assert (none.room, none.channels) == (0, 0)
    far = Block(inputs=(0, 1), operations=("conv5", "identity"))
    some = Continued(_header(Genotype(blocks=(far,), cells=1, channels=3), 0))
    assert (some.room, some.channels) == (4, 3)  # the cell's first input, and not the second


def test_a_classifier_does_not_answer_token_by_token():
    genotype = Genotype(
        blocks=(Block(inputs=(0, 0), operations=("conv1", "conv1")),), cells=1, channels=3
    )
    plan = HeaderPlan(genotype=genotype, hidden=HIDDEN, classes=4, axes=1)
    header = build_header(plan, {n: torch.zeros(s) for n, s in plan.shapes().items()})
    with pytest.raises(ValueError, match="only a causal header"):
        Continued(header)
