"""The space of headers: how many there are, which there are, and how they share weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from acme_fleet.messages.header_plan import (
    KERNELS,
    OPERATIONS,
    Block,
    Channels,
    Genotype,
    HeaderPlan,
    genotypes_by_hand,
    operation_layer,
    smallest_genotype,
)


def space_size(blocks: int, more: Sequence[str] = ()) -> int:
    """|B_{1:B}| = Π (b + 1)² · |Ô|² (Eq. 14); ``more`` are operations beside the paper's."""
    return math.prod(choices(blocks, more))


def choices(blocks: int, more: Sequence[str] = ()) -> list[int]:
    """Number of options of each of the 4B decisions: two inputs, two operations a block."""
    operations = len(OPERATIONS) + len(more)
    return [n for b in range(blocks) for n in (b + 2, b + 2, operations, operations)]


def genotype_of(
    decisions: Sequence[int], cells: int, channels: int, more: Sequence[str] = ()
) -> Genotype:
    """The genotype that 4B decisions describe, in the order of :func:`choices`."""
    operations = [*OPERATIONS, *more]
    blocks = tuple(
        Block(inputs=(i, j), operations=(operations[p], operations[q]))
        for i, j, p, q in zip(*(decisions[k::4] for k in range(4)), strict=True)
    )
    return Genotype(blocks=blocks, cells=cells, channels=channels)


def decisions_of(genotype: Genotype, more: Sequence[str] = ()) -> list[int]:
    """The 4B decisions that describe a genotype."""
    operations = [*OPERATIONS, *more]
    return [
        decision
        for block in genotype.blocks
        for decision in (*block.inputs, *map(operations.index, block.operations))
    ]


def every_genotype(blocks: int, cells: int, channels: int) -> Iterator[Genotype]:
    """All genotypes in lexicographic order; :func:`space_size` says how many."""
    for decisions in itertools.product(*(range(n) for n in choices(blocks))):
        yield genotype_of(decisions, cells, channels)


class SearchSpace:
    """The headers that an edge server may propose.

    Args:
        blocks, cells, channels: B, U and the channels of every operation.
        more: operations beside the paper's.
        hidden, classes, axes, pooled: sizes of the features and of the answer, see
            :class:`~acme_fleet.messages.header_plan.HeaderPlan`.
    """

    def __init__(
        self,
        *,
        blocks: int,
        cells: int,
        channels: int,
        hidden: int,
        classes: int,
        axes: Literal[1, 2],
        pooled: int | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.blocks, self.cells, self.channels = blocks, cells, channels
        self.more = tuple(more)
        self.hidden, self.classes, self.pooled = hidden, classes, pooled
        self.axes: Literal[1, 2] = axes

    @property
    def causal(self) -> bool:
        """True if its headers are."""
        return self.pooled == 0

    def plan(self, decisions: Sequence[int]) -> HeaderPlan:
        """The header that 4B decisions describe."""
        return self._plan(genotype_of(decisions, self.cells, self.channels, self.more))

    def smallest(self) -> HeaderPlan:
        """The header with the fewest weights: what a backbone must leave room for."""
        return self._plan(smallest_genotype(self.blocks, self.cells, self.channels))

    def by_hand(self) -> dict[str, HeaderPlan]:
        """Headers of the space that need no search, by name."""
        made = genotypes_by_hand(self.blocks, self.cells, self.channels)
        return {name: self._plan(genotype) for name, genotype in made.items()}

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of ω: of every tensor that some header of the space has, by name."""
        wide, shapes = tuple(range(self.channels)), {}

        def layer(name: str, inputs: Channels, operation: str = "conv1") -> None:
            of = operation_layer(name, operation, inputs, wide)
            for part, shape in of.shapes(self.axes).items():
                shapes[f"layers.{name}.{part}"] = shape

        for cell in range(self.cells):
            for source in (0, 1):
                from_backbone = cell - 1 - source < 0
                for part in range(1 if from_backbone else self.blocks):
                    inputs = tuple(range(self.hidden)) if from_backbone else wide
                    layer(f"cell{cell}-input{source}-{part}", inputs)
            for block, slot in itertools.product(range(self.blocks), (0, 1)):
                place = f"cell{cell}-block{block}-{slot}"
                layer(f"{place}-align", wide)
                for operation in (*OPERATIONS, *self.more):
                    if operation in KERNELS:
                        layer(f"{place}-{operation}", wide, operation)
        for block in range(self.blocks):
            shapes[f"classifier.block{block}.weight"] = (self.classes, self.channels)
        if self.causal:
            return shapes
        shapes["classifier.pooled.weight"] = (self.classes, self.pooled or self.hidden)
        shapes["classifier.pooled.bias"] = (self.classes,)
        return shapes

    def _plan(self, genotype: Genotype) -> HeaderPlan:
        return HeaderPlan(
            genotype=genotype,
            hidden=self.hidden,
            classes=self.classes,
            axes=self.axes,
            pooled=self.pooled,
        )
