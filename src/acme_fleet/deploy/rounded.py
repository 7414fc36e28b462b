"""Modules that compute with whole numbers in ONNX Runtime; for an exporter, they do not run here.

Each stands for a module of a backbone at ``int8`` or ``int4``, see
:mod:`acme_fleet.models.backbone.precision`, and holds its weights as the file of the device does.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import GROUP, SCALE
from acme_fleet.models.backbone.precision import GroupedInt8Linear, Int8Linear, pack

_ZERO = 128  # of unsigned bytes
Numbers = tuple[Tensor, Tensor]
"""Weights of a file, and the scales of their rows or groups."""


class _Int8Linear(nn.Module):
    """Sums of products of whole numbers, scaled by token and by row; see :class:`Exact`."""

    numbers: Tensor
    scale: Tensor
    bias: Tensor | None
    one: Tensor
    middle: Tensor
    zero: Tensor

    def __init__(self, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers.T.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("one", torch.tensor(1.0))
        self.register_buffer("middle", torch.tensor(_ZERO, dtype=torch.uint8))
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int8))

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """See :class:`Int8Linear`, whose formula this is."""
        tokens = x.flatten(0, -2)
        scale = tokens.abs().amax(dim=-1).clamp_min(1e-30) / 127
        rounded = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (tokens, scale, self.middle.expand_as(scale)),
            {"axis": 0},
            dtype=torch.uint8,
            shape=tokens.shape,
        )
        sums = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulIntegerToFloat",
            (rounded, self.numbers, self.one, self.scale, self.middle, self.zero),
            dtype=torch.float32,
            shape=(tokens.shape[0], self.numbers.shape[1]),
            version=1,
        )
        product = (sums * scale[:, None]).unflatten(0, x.shape[:-1])
        return product if self.bias is None else product + self.bias


class Exact(nn.Module):
    """Not a number where a session's products of bytes overflow, else what it is given.

    On x86 processors without VNNI, ONNX Runtime adds pairs of products in 16 bits, unless the
    session has the entry ``session.x64quantprecision``, which the runner and ``run.py`` see to.
    Without it answers would be wrong by a little; the largest pair of products shows that.
    """

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.full((2, 1), 127, dtype=torch.int8))

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """The same values, of any shape."""
        # From the input, so that no optimiser computes it on another machine.
        full = (x.isnan().logical_not().flatten()[:1].float() * 255).to(torch.uint8)
        total = torch.onnx.ops.symbolic(
            "MatMulInteger", (full.expand(1, 2), self.largest), dtype=torch.int32, shape=(1, 1)
        )
        return torch.where(total.flatten() == 2 * 255 * 127, x, torch.nan)


class _Int4Linear(nn.Module):
    """ONNX Runtime's MatMulNBits: groups of 32 weights of a row have one scale."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, packed: Tensor, scale: Tensor, bias: Tensor | None, inputs: int) -> None:
        super().__init__()
        rows, groups = scale.shape
        self.inputs = inputs
        self.register_buffer("packed", packed.reshape(rows, groups, GROUP // 2))
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The product of inputs in float32 and weights of 4 bits."""
        rows = len(self.packed)
        sizes = {"K": self.inputs, "N": rows, "bits": 4, "block_size": GROUP}
        product = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.packed, self.scale),
            {**sizes, "accuracy_level": 1},  # inputs stay in float32
            dtype=torch.float32,
            shape=(*x.shape[:-1], rows),
            version=1,
        )
        return product if self.bias is None else product + self.bias


class Int8Embedding(nn.Module):
    """Rows of a table are read as whole numbers, then scaled."""

    numbers: Tensor
    scale: Tensor

    def __init__(self, numbers: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale[:, None])

    def forward(self, ids: Int64[Tensor, ...]) -> Float[Tensor, "... hidden"]:
        """The rows of these numbers."""
        return self.numbers[ids].float() * self.scale[ids]


class _Int4Embedding(nn.Module):
    """Rows of a table are read as packed, then taken apart: two numbers in a byte.

    They are packed as :class:`_Int4Linear` has them, so that a language head may share them.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, packed: Tensor, scale: Tensor, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("packed", packed.unflatten(1, (-1, GROUP // 2)))
        self.register_buffer("scale", scale.float())

    def forward(self, ids: Int64[Tensor, ...]) -> Float[Tensor, "... hidden"]:
        """The rows of these numbers."""
        # By division: exporters know it for every type of whole numbers, unlike shifts of bits.
        row = self.packed[ids].to(torch.int32)
        high = torch.div(row, 16, rounding_mode="floor")
        numbers = torch.stack([row - 16 * high, high], dim=-1).flatten(-2).float() - 8
        return (numbers * self.scale[ids][..., None]).flatten(-2)[..., : self.hidden]


class _FloatHead(nn.Module):
    """A language head that may be the table of words: its rows are not turned around."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    def forward(self, x: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, ...]:
        """Logits of each token."""
        words = len(self.weight)
        product = torch.onnx.ops.symbolic(
            "Gemm",
            (x.flatten(0, 1), self.weight),
            {"transB": 1},
            dtype=torch.float32,
            shape=(x.shape[0] * x.shape[1], words),
        )
        return product.unflatten(0, (x.shape[0], x.shape[1]))


class _Int8Groups(nn.Module):
    """A decoder's Linear or head: inputs are rounded by groups of 32, see GroupedInt8Linear."""

    bias: Tensor | None

    def __init__(self, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.hidden = numbers.shape[1]
        filled = F.pad(numbers.to(torch.int16) + _ZERO, (0, -self.hidden % GROUP), value=_ZERO)
        self.register_buffer("numbers", filled.to(torch.uint8).unflatten(1, (-1, GROUP)))
        groups = self.get_buffer("numbers").shape[1]
        self.register_buffer("scale", scale[:, None].repeat(1, groups))
        self.register_buffer("row_scale", scale)

    def forward(self, x: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, ...]:
        """The product of rounded inputs and rounded weights."""
        numbers, scale = self.get_buffer("numbers"), self.get_buffer("scale")
        sizes = {"K": self.hidden, "N": len(numbers), "bits": 8, "block_size": GROUP}
        product = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, numbers, scale),
            {**sizes, "accuracy_level": 4},  # as fast as at 4 bits; in float32 a hundred times less
            dtype=torch.float32,
            shape=(*x.shape[:-1], len(numbers)),
            version=1,
        )
        return product if self.bias is None else product + self.bias


class _HeadsEmbedding(nn.Module):
    """The table of words that an :class:`_Int8Groups` has."""

    def __init__(self, head: _Int8Groups) -> None:
        super().__init__()
        self.head = head

    def forward(self, ids: Int64[Tensor, ...]) -> Float[Tensor, "... hidden"]:
        """The rows of these numbers."""
        row = self.head.get_buffer("numbers")[ids].flatten(-2)[..., : self.head.hidden]
        return (row.float() - _ZERO) * self.head.get_buffer("row_scale")[ids][..., None]


def language_head(backbone: nn.Module, name: str, precision: Precision) -> nn.Module:
    """A language head for an exporter; one that is the table of words takes no bytes of its own.

    Args:
        backbone: before :func:`with_whole_numbers`; its table of words is replaced.
        name: of the head's weight in it.
        precision: of the backbone.
    """
    weight, place = backbone.get_parameter(name).detach(), name.removesuffix(".weight")
    tied = isinstance(backbone.get_submodule(place), nn.Embedding)
    if precision == "int8":
        head: nn.Module = _Int8Groups(*packed(weight, precision), None)
        if tied:
            table = _HeadsEmbedding(cast("_Int8Groups", head))
            backbone.set_submodule(place, _scaled(backbone.get_submodule(place), table))
        return head
    if precision == "int4":
        return _Int4Linear(*packed(weight, precision), None, weight.shape[1])
    return _FloatHead(weight)


class _Times(nn.Module):
    """A product with a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """The product."""
        return x * self.factor


def _scaled(module: nn.Module, table: nn.Module) -> nn.Module:
    """A table in the place of one whose rows may have a factor, as Gemma's."""
    factor = getattr(module, "scalar_embed_scale", None)
    return table if factor is None else nn.Sequential(table, _Times(float(factor)))


def _replacement(module: nn.Module, precision: Precision) -> nn.Module | None:
    if isinstance(module, nn.Embedding):
        weight = module.weight.detach()
        numbers, scale = packed(weight, precision)
        if precision == "int8":
            return _scaled(module, Int8Embedding(numbers, scale))
        return _scaled(module, _Int4Embedding(numbers, scale, weight.shape[1]))
    if type(module) not in (nn.Linear, Int8Linear, GroupedInt8Linear):
        return None
    weight = module.get_parameter("weight").detach()
    numbers, scale = packed(weight, precision)
    bias = module.state_dict().get("bias")
    if isinstance(module, GroupedInt8Linear):
        return _Int8Groups(numbers, scale, bias)
    if precision == "int8":
        return _Int8Linear(numbers, scale, bias)
    return _Int4Linear(numbers, scale, bias, weight.shape[1])


def with_whole_numbers(backbone: nn.Module, precision: Precision) -> dict[str, Numbers]:
    """Replace a backbone's Linears and embeddings at ``int8`` or ``int4``.

    Returns:
        Weights of one byte a number that stay, as the patches' convolution, by their names.
    """
    if precision not in ("int8", "int4"):
        return {}
    for name, module in list(backbone.named_modules()):
        if replacement := _replacement(module, precision):
            backbone.set_submodule(name, replacement)
    bytewise = 2 if precision == "int8" else 3  # axes from which a weight has one byte a number
    return {
        name: packed(weight.detach(), "int8")
        for name, weight in backbone.named_parameters()
        if name.endswith(".weight") and weight.ndim >= bytewise
    }


def packed(weight: Tensor, precision: Precision) -> Numbers:
    """A weight as the device's file holds it, and its scales."""
    tensors = pack({"of.weight": weight}, precision)
    return tensors["of.weight"], tensors["of.weight" + SCALE]
