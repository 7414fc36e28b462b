"""A header without its weights: the genotype, what pruning left of it, and the graph it spans.

A genotype is B blocks that form a cell; U cells are stacked (METHOD 7). Pure bookkeeping: sizes
of a header are known from here before anything is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

OPERATIONS = ["conv1", "conv3", "conv5", "identity", "downsample", "avg_pool", "max_pool"]
"""The operations of every search space; see :mod:`acme_fleet.models.header.operations`."""
MORE_OPERATIONS = ("separable3", "separable5", "attention")
"""Operations that a block may have too, and a search space where its settings name them."""
KERNELS: dict[str, int] = {"conv1": 1, "conv3": 3, "conv5": 5, "downsample": 3} | dict.fromkeys(
    MORE_OPERATIONS, 1
)
"""Operations that have weights, with their kernel; the others pass channels through."""
DEPTHWISE = {"separable3": 3, "separable5": 5}
"""Kernels of one channel each that stand before the operation's convolution."""


def known_operations() -> list[str]:
    """All operations that a block may have."""
    return [*OPERATIONS, *MORE_OPERATIONS]


def _known(operation: str) -> str:
    if operation not in (known := known_operations()):
        raise ValueError(f"there is no operation {operation[:60]!r}; known: {', '.join(known)}")
    return operation


Operation = Annotated[str, AfterValidator(_known)]

FEATURES = ("last", "penultimate")
BY_HAND = ("smallest", "pointwise", "convolutions")
"""Names of :func:`genotypes_by_hand`."""
Channels = tuple[int, ...]
Index = Annotated[int, Field(ge=0, lt=2**16)]
Kept = Annotated[tuple[Index, ...], Field(max_length=2**12)]


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Plan):
    """Two inputs, two operations, one sum.

    Input 0 is the cell's first input, 1 its second, 2 + k the output of its block k.
    """

    inputs: tuple[Index, Index]
    operations: tuple[Operation, Operation]


class Genotype(_Plan):
    """A header's architecture: the cell's blocks, and how often the cell is stacked.

    The first cell's inputs are the backbone's last and penultimate hidden state; a later cell's
    are the two things before it, nearest first.
    """

    blocks: Annotated[tuple[Block, ...], Field(min_length=1, max_length=8)]
    cells: Annotated[int, Field(ge=1, le=8)]
    channels: Annotated[int, Field(ge=1, le=4096)]

    @model_validator(mode="after")
    def _acyclic(self) -> Genotype:
        for number, block in enumerate(self.blocks):
            if max(block.inputs) > number + 1:
                raise ValueError(f"block {number} takes an input that comes after it: {block}")
        return self

    @property
    def loose_ends(self) -> tuple[int, ...]:
        """Blocks whose output no other block takes; they are joined."""
        used = {source - 2 for block in self.blocks for source in block.inputs}
        return tuple(b for b in range(len(self.blocks)) if b not in used)

    def describe(self) -> str:
        """One line, e.g. ``[conv3(last) + identity(penultimate)] × 1 cell of 24 channels``."""

        def name(source: int) -> str:
            return FEATURES[source] if source < 2 else f"block{source - 2}"

        blocks = (
            " + ".join(f"{o}({name(i)})" for i, o in zip(b.inputs, b.operations, strict=True))
            for b in self.blocks
        )
        plural = "s" if self.cells > 1 else ""
        return f"[{' | '.join(blocks)}] × {self.cells} cell{plural} of {self.channels} channels"


def smallest_genotype(blocks: int, cells: int, channels: int) -> Genotype:
    """The genotype with the fewest weights: one chain of operations that have none.

    From the third cell on, reading the second input skips cells, so both are compared.
    """

    def chain(start: int) -> Genotype:
        sources = [start, *range(2, blocks + 1)]
        chained = tuple(Block(inputs=(i, i), operations=("identity", "identity")) for i in sources)
        return Genotype(blocks=chained, cells=cells, channels=channels)

    return min((chain(0), chain(1)), key=lambda g: len(HeaderPlan.probe(g).layers))


def genotypes_by_hand(blocks: int, cells: int, channels: int) -> dict[str, Genotype]:
    """Headers of any search space that nobody needs to search, by name; the smallest first.

    The others apply one operation to both inputs, and then to each block before, beside which that
    block's output passes as it is.
    """

    def chain(operation: str) -> Genotype:
        first = Block(inputs=(0, 1), operations=(operation, operation))
        later = (Block(inputs=(b, b), operations=(operation, "identity")) for b in range(2, 9))
        taken = (first, *later)[:blocks]
        return Genotype(blocks=taken, cells=cells, channels=channels)

    smallest = smallest_genotype(blocks, cells, channels)
    return dict(zip(BY_HAND, (smallest, chain("conv1"), chain("conv3")), strict=True))


@dataclass(frozen=True)
class Layer:
    """A convolution with weights: the channels it reads and writes, its kernel and stride.

    Attributes:
        depthwise: kernel of a convolution of each input channel alone, before it; 0 is none.
        attends: it reads the mean over all positions, weighted by a query's attention.
    """

    name: str
    inputs: Channels
    outputs: Channels
    kernel: int
    stride: int = 1
    depthwise: int = 0
    attends: bool = False

    def shapes(self, axes: Literal[1, 2]) -> dict[str, tuple[int, ...]]:
        """Shape of each of its tensors; rows of the weight and the bias are its neurons."""
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (len(self.outputs), len(self.inputs), *(self.kernel,) * axes),
            "bias": (len(self.outputs),),
        }
        if self.depthwise:
            shapes["depthwise"] = (len(self.inputs), 1, *(self.depthwise,) * axes)
        if self.attends:
            shapes["query"] = (1, len(self.inputs))
        return shapes


def operation_layer(name: str, operation: Operation, inputs: Channels, outputs: Channels) -> Layer:
    """The layer of an operation that has weights."""
    return Layer(
        name,
        inputs,
        outputs,
        KERNELS[operation],
        stride=2 if operation == "downsample" else 1,
        depthwise=DEPTHWISE.get(operation, 0),
        attends=operation == "attention",
    )


@dataclass(frozen=True)
class Term:
    """One summand of a node: a source, an operation, and a 1×1 convolution where sizes differ."""

    source: str
    operation: Operation
    layer: Layer | None
    align: Layer | None
    channels: Channels


@dataclass(frozen=True)
class Node:
    """A sum of terms: a cell's input or a block. ``halvings`` counts the down-samplings."""

    name: str
    terms: tuple[Term, ...]
    halvings: int

    @cached_property
    def channels(self) -> Channels:
        """Channels that at least one term writes."""
        return tuple(sorted(set().union(*(term.channels for term in self.terms))))


class HeaderPlan(_Plan):
    """Everything but the weights: a header can be rebuilt from it.

    Attributes:
        genotype: the architecture.
        hidden: channels of the backbone's features.
        classes: number of logits.
        axes: 2 for a patch grid, 1 for a token sequence.
        pooled: numbers in the pooled vector; ``hidden`` where it is not given. 0 is that of a
            causal header, which has no classifier: it adds something to each token's hidden state,
            by the tokens before it, and ``classes`` is ``hidden``.
        kept: for each pruned layer the output channels that remain, ascending; a layer that is
            not listed keeps all.
    """

    genotype: Genotype
    hidden: Annotated[int, Field(ge=1, le=2**16)]
    classes: Annotated[int, Field(ge=2, le=2**20)]
    axes: Literal[1, 2]
    pooled: Annotated[int, Field(ge=0, le=2**17)] | None = None
    kept: Annotated[dict[str, Kept], Field(max_length=2**10)] = {}

    @model_validator(mode="after")
    def _causal_is_of_texts(self) -> HeaderPlan:
        if self.causal and (self.axes != 1 or self.classes != self.hidden):
            raise ValueError(
                f"a causal header is of texts and changes their {self.hidden} channels, not "
                f"{self.classes} along {self.axes} axes"
            )
        return self

    @model_validator(mode="after")
    def _kept_is_valid(self) -> HeaderPlan:
        for layer, channels in self.kept.items():
            if not channels or list(channels) != sorted(set(channels)):
                raise ValueError(f"kept channels of {layer} must ascend and not be empty")
            if channels[-1] >= self.genotype.channels:
                raise ValueError(f"{layer} has no channel {channels[-1]}")
        if unknown := self.kept.keys() - self.layers.keys():
            raise ValueError(f"the genotype has no layers {sorted(unknown)}")
        return self

    @staticmethod
    def probe(genotype: Genotype) -> HeaderPlan:
        """A plan with the least sizes, to look at a genotype's graph."""
        return HeaderPlan(genotype=genotype, hidden=1, classes=2, axes=1)

    @property
    def causal(self) -> bool:
        """True if it answers for each token, by this token and those before it alone."""
        return self.pooled == 0

    @property
    def pooled_size(self) -> int:
        """Numbers in the vector that stands for a whole input, whether the header reads it."""
        return self.pooled or self.hidden

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The graph in the order of execution; only what reaches the logits is in it."""
        return _Tracer(self).trace()

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """All layers whose output channels are the header's prunable neurons."""
        terms = (term for node in self.nodes for term in node.terms)
        return {layer.name: layer for term in terms for layer in (term.layer, term.align) if layer}

    @property
    def ends(self) -> dict[str, Node]:
        """The last cell's loose ends: what is pooled and joined with the pooled token."""
        last = f"cell{self.genotype.cells - 1}"
        nodes = {node.name: node for node in self.nodes}
        return {f"block{b}": nodes[f"{last}-block{b}"] for b in self.genotype.loose_ends}

    @property
    def neurons(self) -> int:
        """Number of output channels over all layers."""
        return sum(len(layer.outputs) for layer in self.layers.values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the header, by the name it has in the header's state."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in self.layers.items():
            for part, shape in layer.shapes(self.axes).items():
                shapes[f"layers.{name}.{part}"] = shape
        for name, node in self.ends.items():
            shapes[f"classifier.{name}.weight"] = (self.classes, len(node.channels))
        if not self.causal:
            shapes["classifier.pooled.weight"] = (self.classes, self.pooled_size)
            shapes["classifier.pooled.bias"] = (self.classes,)
        return shapes


class _Tracer:
    """Walks a genotype from the logits backwards, so that dead parts are never reached."""

    def __init__(self, plan: HeaderPlan) -> None:
        self.plan = plan
        self.nodes: dict[str, Node] = {}

    def trace(self) -> tuple[Node, ...]:
        self._cell(self.plan.genotype.cells - 1)
        return tuple(self.nodes.values())

    def _cell(self, cell: int) -> list[tuple[int, Node]]:
        return [(b, self._block(cell, b)) for b in self.plan.genotype.loose_ends]

    def _block(self, cell: int, number: int) -> Node:
        name = f"cell{cell}-block{number}"
        if name not in self.nodes:
            block = self.plan.genotype.blocks[number]
            sources = [
                self._input(cell, i) if i < 2 else self._block(cell, i - 2) for i in block.inputs
            ]
            halvings = [
                source.halvings + (operation == "downsample")
                for source, operation in zip(sources, block.operations, strict=True)
            ]
            top = max(halvings)
            terms = tuple(
                self._term(f"{name}-{slot}", source, block.operations[slot], top - halvings[slot])
                for slot, source in enumerate(sources)
            )
            self.nodes[name] = Node(name, terms, top)
        return self.nodes[name]

    def _term(self, name: str, source: Node, operation: Operation, halvings: int) -> Term:
        channels, layer, align = source.channels, None, None
        if operation in KERNELS:
            of = f"{name}-{operation}"
            layer = operation_layer(of, operation, channels, self._written(of))
            channels = layer.outputs
        if halvings:
            align = self._layer(f"{name}-align", channels, 1, 2**halvings)
            channels = align.outputs
        return Term(source.name, operation, layer, align, channels)

    def _input(self, cell: int, number: int) -> Node:
        """A cell's input: 1×1 convolutions that bring all that is joined to the cell's channels."""
        name, origin = f"cell{cell}-input{number}", cell - 1 - number
        if name not in self.nodes:
            parts = self._cell(origin) if origin >= 0 else [(0, self._features(-origin - 1))]
            halvings = max(node.halvings for _, node in parts)
            terms = []
            for part, node in parts:
                stride = 2 ** (halvings - node.halvings)
                layer = self._layer(f"{name}-{part}", node.channels, 1, stride)
                terms.append(Term(node.name, "conv1", layer, None, layer.outputs))
            self.nodes[name] = Node(name, tuple(terms), halvings)
        return self.nodes[name]

    def _features(self, which: int) -> Node:
        channels = tuple(range(self.plan.hidden))
        term = Term(FEATURES[which], "identity", None, None, channels)
        return Node(FEATURES[which], (term,), 0)

    def _layer(self, name: str, inputs: Channels, kernel: int, stride: int) -> Layer:
        return Layer(name, inputs, self._written(name), kernel, stride)

    def _written(self, name: str) -> Channels:
        return self.plan.kept.get(name, tuple(range(self.plan.genotype.channels)))
