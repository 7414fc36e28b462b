"""Modules that compute with whole numbers in ONNX Runtime; for an exporter, they do not run here.

Each stands for a module of a backbone at ``int8`` or ``int4``, see
:mod:`acme_fleet.models.backbone.precision`, and holds its weights as the file of the device does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import GROUP, SCALE
from acme_fleet.models.backbone.precision import Int8Linear, pack

_ZERO = 128  # of unsigned bytes
Numbers = tuple[Tensor, Tensor]
"""Weights of a file, and the scales of their rows or groups."""


class _Int8Linear(nn.Module):
    """Sums of products of whole numbers, scaled by token and by row.

    Both factors are unsigned. With signed weights, runtimes on processors without VNNI add pairs of
    products in 16 bits, which overflow.
    """

    numbers: Tensor
    scale: Tensor
    bias: Tensor | None
    zero: Tensor

    def __init__(self, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        unsigned = (numbers.T.to(torch.int16) + _ZERO).to(torch.uint8).contiguous()
        self.register_buffer("numbers", unsigned)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("zero", torch.tensor(_ZERO, dtype=torch.uint8))

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """See :class:`Int8Linear`, whose formula this is."""
        scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
        rounded = ((x / scale).round() + _ZERO).to(torch.uint8)
        sums = torch.onnx.ops.symbolic(
            "MatMulInteger",
            (rounded, self.numbers, self.zero, self.zero),
            dtype=torch.int32,
            shape=(*x.shape[:-1], self.numbers.shape[1]),
        )
        product = sums.float() * scale * self.scale
        return product if self.bias is None else product + self.bias


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
    """Rows of a table are read as packed, then taken apart: two numbers in a byte."""

    packed: Tensor
    scale: Tensor

    def __init__(self, packed: Tensor, scale: Tensor, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale.float())

    def forward(self, ids: Int64[Tensor, ...]) -> Float[Tensor, "... hidden"]:
        """The rows of these numbers."""
        # By division: exporters know it for every type of whole numbers, unlike shifts of bits.
        row = self.packed[ids].to(torch.int32)
        high = torch.div(row, 16, rounding_mode="floor")
        numbers = torch.stack([row - 16 * high, high], dim=-1).flatten(-2).float() - 8
        groups = self.scale.shape[1]
        scaled = numbers.unflatten(-1, (groups, GROUP)) * self.scale[ids][..., None]
        return scaled.flatten(-2)[..., : self.hidden]


def _replacement(module: nn.Module, precision: Precision) -> nn.Module | None:
    kind = type(module)
    if kind not in (nn.Linear, Int8Linear, nn.Embedding):
        return None
    weight = module.get_parameter("weight").detach()
    numbers, scale = packed(weight, precision)
    if kind is nn.Embedding:
        if precision == "int8":
            return Int8Embedding(numbers, scale)
        return _Int4Embedding(numbers, scale, weight.shape[1])
    bias = module.state_dict().get("bias")
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
