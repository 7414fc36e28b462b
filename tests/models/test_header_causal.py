"""Causal headers: a token sees itself and what is before it, whatever the operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan, known_operations
from acme_fleet.models.header.module import (
    Header,
    LinearChange,
    answering_as,
    build_header,
    initial_tensors,
    prune,
)
from acme_fleet.models.header.unpruned import expand, shrink

_HIDDEN, _TOKENS = 6, 11


def _header(*operations: tuple[str, str], cells: int = 1) -> Header:
    """Blocks in a chain, each on the one before it and on the last hidden state."""
    blocks = [
        Block(inputs=(number + 1 if number else 0, 1), operations=pair)
        for number, pair in enumerate(operations)
    ]
    genotype = Genotype(blocks=tuple(blocks), cells=cells, channels=5)
    plan = HeaderPlan(genotype=genotype, hidden=_HIDDEN, classes=_HIDDEN, axes=1, pooled=0)
    draw = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in plan.shapes().items()}
    return build_header(plan, tensors)


def _maps(batch: int = 2, tokens: int = _TOKENS, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    maps = {
        name: torch.randn(batch, _HIDDEN, tokens, generator=draw)
        for name in ("last", "penultimate")
    }
    return {**maps, "pooled": torch.zeros(batch, _HIDDEN)}


@pytest.mark.parametrize("operation", known_operations())
@pytest.mark.parametrize("cells", [1, 2])
def test_no_token_sees_those_behind_it(operation: str, cells: int):
    header = _header((operation, "identity"), (operation, operation), cells=cells)
    maps = _maps()
    before = header(**maps)
    for token in range(1, _TOKENS):
        changed = {**maps}
        for name in ("last", "penultimate"):
            changed[name] = maps[name].clone()
            changed[name][..., token:] += 3.0
        after = header(**changed)
        torch.testing.assert_close(after[..., :token], before[..., :token], rtol=0, atol=0)
        assert not torch.equal(after[..., token], before[..., token])


@pytest.mark.parametrize(
    "operation", ["conv3", "conv5", "downsample", "avg_pool", "max_pool", "separable5", "attention"]
)
def test_every_operation_but_the_narrow_ones_sees_the_past(operation: str):
    header = _header((operation, "identity"))
    maps = _maps()
    grown = {**maps, "last": maps["last"].clone()}
    grown["last"][..., :5] *= 9.0
    grown["last"][..., 5:] = maps["last"][..., 5:]
    difference = header(**grown) - header(**maps)
    assert bool(difference[..., 6].any())


@pytest.mark.parametrize("operation", known_operations())
def test_padding_behind_a_text_changes_nothing(operation: str):
    header = _header((operation, "avg_pool"), ("max_pool", operation))
    maps, mask = _maps(1), torch.zeros(1, 1, _TOKENS, dtype=torch.bool)
    mask[..., :6] = True
    short = {name: values[..., :6] for name, values in maps.items() if name != "pooled"}
    alone = header(**short, pooled=maps["pooled"])
    cleared = {name: torch.where(mask, maps[name], 0.0) for name in short}
    padded = header(**cleared, pooled=maps["pooled"], mask=mask)
    torch.testing.assert_close(padded[..., :6], alone, rtol=1e-5, atol=1e-6)
    assert not padded[..., 6:].any()


def test_it_adds_nothing_at_the_start():
    plan = _header(("conv3", "downsample"), ("max_pool", "conv5")).plan
    drawn = initial_tensors(plan.shapes(), torch.Generator().manual_seed(0))
    header = build_header(plan, answering_as(drawn, {}))
    maps = _maps()
    assert torch.equal(header(**maps), maps["last"])
    none = {"weight": torch.zeros(_HIDDEN, _HIDDEN), "bias": torch.zeros(_HIDDEN)}
    assert torch.equal(LinearChange(none)(**maps), maps["last"])


def test_pruned_neurons_are_as_if_their_weights_were_zero():
    header = _header(("conv3", "downsample"), ("conv1", "avg_pool"))
    kept = dict.fromkeys(header.plan.layers, (0, 2, 3))
    small = prune(header, kept)
    again = shrink(small.plan, expand(small.plan, small.state_dict()))
    maps = _maps()
    torch.testing.assert_close(small(**maps), again(**maps))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in header.parameters())
    assert not any("pooled" in name for name in small.state_dict())


def test_an_operation_without_a_causal_form_is_refused(monkeypatch: pytest.MonkeyPatch):
    from acme_fleet.models.header import operations

    monkeypatch.delitem(operations.CAUSAL, "avg_pool")
    with pytest.raises(ValueError, match="avg_pool has no causal form"):
        _header(("avg_pool", "identity"))


@pytest.mark.parametrize("change", [{"axes": 2}, {"classes": _HIDDEN + 1}])
def test_a_causal_plan_is_of_texts_and_changes_their_channels(change: dict[str, int]):
    plan = _header(("identity", "identity")).plan
    with pytest.raises(ValueError, match="a causal header is of texts"):
        HeaderPlan.model_validate({**plan.model_dump(), **change})
