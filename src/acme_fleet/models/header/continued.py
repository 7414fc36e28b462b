"""A causal header on new tokens alone: of earlier ones it keeps what later tokens read.

A map at every second position is computed at every position here, with the operations behind it
reading every second one: what it has at the positions that count is the same, and no position of
the text has to be known until its value is held for the positions behind it. So each new token
costs the same, however long the text is.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.messages.header_plan import FEATURES, Term
from acme_fleet.models.header.module import Header
from acme_fleet.models.header.operations import CAUSAL
from acme_fleet.models.padding import clear_padding


class Continued(nn.Module):
    """A causal header with a memory; its layers are the header's own.

    Attributes:
        room: positions before the new ones that the memory has.
        channels: numbers that it has for each.
    """

    def __init__(self, header: Header) -> None:
        super().__init__()
        if not header.plan.causal:
            raise ValueError("only a causal header answers token by token")
        self.header, plan = header, header.plan
        self._steps = dict.fromkeys(FEATURES, 1) | {n.name: 2**n.halvings for n in plan.nodes}
        reach = dict.fromkeys(self._steps, 0)
        for node in plan.nodes:
            for term in node.terms:
                reach[term.source] = max(reach[term.source], self._reach(term))
        for node in plan.ends.values():
            reach[node.name] = max(reach[node.name], 2**node.halvings - 1)
        sizes = dict.fromkeys(FEATURES, plan.hidden) | {n.name: len(n.channels) for n in plan.nodes}
        self._kept = {name: sizes[name] for name, far in reach.items() if far}
        self.room, self.channels = max(reach.values()), sum(self._kept.values())

    def forward(
        self,
        last: Float[Tensor, "batch hidden new"],
        penultimate: Float[Tensor, "batch hidden new"],
        real: Bool[Tensor, "batch 1 room_and_new"],
        places: Int[Tensor, "batch new"],
        memory: Float[Tensor, "batch channels room"],
    ) -> tuple[Float[Tensor, "batch hidden new"], Float[Tensor, "batch channels new"]]:
        """The changed hidden states of new tokens, and what is to be remembered of them.

        Args:
            last, penultimate: hidden states of the new tokens; zero at padded positions.
            real: true at real positions, those of the memory first; before a text there are none.
            places: of the new tokens in their texts, from 0.
            memory: of the positions before; zero where there is none.
        """
        now = real[..., self.room :]
        past = dict(zip(self._kept, memory.split(list(self._kept.values()), dim=1), strict=True))
        values = {"last": last, "penultimate": penultimate}
        joined = {name: self._with_past(name, values[name], past) for name in FEATURES}
        for node in self.header.plan.nodes:
            terms = [self._term(term, joined[term.source], real) for term in node.terms]
            values[node.name] = clear_padding(self.header.sums[node.name](terms), now)
            joined[node.name] = self._with_past(node.name, values[node.name], past)
        changed = last
        for name, node in self.header.plan.ends.items():
            held = self._held(joined[node.name], places, 2**node.halvings)
            classifier = self.header.classifier[name]
            changed = changed + classifier(held.transpose(1, 2)).transpose(1, 2)
        new = [values[name] for name in self._kept] or [last[:, :0]]
        return clear_padding(changed, now), torch.cat(new, dim=1)

    def _reach(self, term: Term) -> int:
        """Positions before its own that a term reads of its source, at most."""
        step = self._steps[term.source]
        return step * (term.layer.kernel - 1 if term.layer else CAUSAL[term.operation].reach)

    def _with_past(self, name: str, x: Tensor, past: dict[str, Tensor]) -> Tensor:
        return torch.cat([past[name], x], dim=2) if name in past else x

    def _term(
        self, term: Term, x: Float[Tensor, "batch channels _"], real: Bool[Tensor, "batch 1 _"]
    ) -> Float[Tensor, "batch written new"]:
        reach, step = self._reach(term), self._steps[term.source]
        if term.source in self._kept:
            x = x[..., self.room - reach :]
        if term.layer:
            x = x if term.source in FEATURES else F.relu(x)
            layer = cast("nn.Conv1d", self.header.layers[term.layer.name])
            x = F.conv1d(x, layer.weight, layer.bias, dilation=step)
        elif reach:
            back = range(0, reach + 1, step)
            new = x.shape[2] - reach
            windows = torch.stack([x[..., start : start + new] for start in back], dim=-1)
            shown = real[..., self.room - reach :]
            masks = torch.stack([shown[..., start : start + new] for start in back], dim=-1)
            x = CAUSAL[term.operation].apply(windows, masks, 1)[..., -1]
        if not term.align:
            return x
        layer = cast("nn.Conv1d", self.header.layers[term.align.name])
        return F.conv1d(x, layer.weight, layer.bias)  # of kernel 1, at every position here

    def _held(
        self, x: Float[Tensor, "batch channels _"], places: Int[Tensor, "batch new"], step: int
    ) -> Float[Tensor, "batch channels new"]:
        """For each new token the value at the last position that counts, its own or one before."""
        if step == 1:
            return x[..., x.shape[2] - places.shape[1] :]
        here = torch.arange(places.shape[1], device=x.device) + self.room
        index = (here - places % step)[:, None].expand(-1, x.shape[1], -1)
        return x.gather(2, index)
