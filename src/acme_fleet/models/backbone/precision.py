"""Weights at the precision that they are stored in, and computing with them (METHOD 11).

A rounded backbone is float32 in memory: each weight is an exact product of a small whole number and
its scale, so that packing it again gives the same bytes. What a runtime computes with integers is
computed here with those products.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import GROUP, SCALE, Shapes, stored_tensors

_SMALLEST = 2.0**-14
"""Of the scales at int4: the smallest number that float16 holds with all its digits."""


class Int8Linear(nn.Linear):
    """A Linear at int8: inputs are rounded to whole numbers up to ±127, one scale for each token.

    An answer depends neither on the batch nor on padding.
    """

    def forward(self, input: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The product of rounded inputs and rounded weights."""
        return F.linear(_to_bytes(input), self.weight, self.bias)


class GroupedInt8Linear(Int8Linear):
    """The same with a scale for each 32 inputs of a token, as decoders need.

    A few of their channels are hundreds of times the others, which one scale would round to
    nothing: SmolLM2-135M loses 0.19 nats a token by it, and nothing with groups.
    """

    def forward(self, input: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The product of rounded inputs and rounded weights."""
        filled = F.pad(input, (0, -self.in_features % GROUP)).unflatten(-1, (-1, GROUP))
        rounded = _to_bytes(filled).flatten(-2)[..., : self.in_features]
        return F.linear(rounded, self.weight, self.bias)


def _to_bytes(x: Float[Tensor, "... together"]) -> Float[Tensor, "... together"]:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
    # In place: a copy for each step would cost more than the product of small backbones.
    return (x / scale).round_().mul_(scale)


def use_precision(model: nn.Module, precision: Precision, *, groups: bool = False) -> None:
    """Make a model compute as runtimes do at a precision; float16 and int4 store weights alone.

    At int8 inputs are rounded by token or, in a decoder, in ``groups``.
    """
    if precision != "int8":
        return
    kind = GroupedInt8Linear if groups else Int8Linear
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            place = {"device": module.weight.device, "dtype": module.weight.dtype}
            sizes = module.in_features, module.out_features, module.bias is not None
            rounding = kind(*sizes, **place)
            rounding.load_state_dict(module.state_dict(), assign=True)
            model.set_submodule(name, rounding)


def rounded(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """The values that tensors have at a precision, in float32; whole numbers stay."""
    weights = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return {**tensors, **unpack(pack(weights, precision), shapes)}


def stored_as(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """safetensors' type and the shape of a tensor in a model's file; numbers of any other type take
    the 4 bytes of float32.
    """
    codes = {torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8"}
    return codes.get(tensor.dtype, "F32"), tuple(tensor.shape)


def pack(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Tensors as a file at this precision holds them, see :func:`stored_tensors`.

    Weights are divided by their scale and rounded. At ``int8`` a row's scale is its largest
    magnitude over 127, of 16 significant bits. At ``int4`` a group's is its largest value by
    magnitude over -8, as in GGUF's Q4_0 and ONNX Runtime's MatMulNBits.
    """
    stored = stored_tensors({n: tuple(t.shape) for n, t in tensors.items()}, precision)
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        code = stored[name][0]
        if code == "F16":
            packed[name] = tensor.to(torch.float16)
        elif code == "F32":
            packed[name] = tensor.to(torch.float32)
        else:
            round_weight = _to_int8 if code == "I8" else _to_int4
            packed[name], packed[name + SCALE] = round_weight(tensor.detach().float())
    return packed


def unpack(packed: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Undo :func:`pack`, in float32: at ``int8`` to within half of a row's scale.

    Args:
        packed: a file's tensors.
        shapes: of the weights, which do not say where a row at int4 ends.
    """
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensor = packed[name]
        if tensor.dtype == torch.int8:
            scale = packed[name + SCALE]
            found[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif tensor.dtype == torch.uint8:
            found[name] = _from_int4(tensor, packed[name + SCALE], shape[1])
        else:
            found[name] = tensor.float()
    return found


def _to_int8(weight: Float[Tensor, "rows ..."]) -> tuple[Int8[Tensor, "rows ..."], Tensor]:
    scale = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-30) / 127
    # Rounded up to 16 significant bits: 127 times it is exact.
    scale = ((scale.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    return (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scale


def _to_int4(weight: Float[Tensor, "rows columns"]) -> tuple[UInt8[Tensor, "rows half"], Tensor]:
    """Two numbers in a byte, the first in its low half, each plus 8."""
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = largest / -8
    scale = torch.where(scale.abs() < _SMALLEST, _SMALLEST, scale).to(torch.float16)
    numbers = ((groups / scale.float()).round() + 8).clamp(0, 15).to(torch.uint8).flatten(1)
    return numbers[:, ::2] | (numbers[:, 1::2] << 4), scale[..., 0]


def _from_int4(
    packed: UInt8[Tensor, "rows half"], scale: Float[Tensor, "rows groups"], columns: int
) -> Float[Tensor, "rows columns"]:
    numbers = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).float() - 8
    return (numbers.unflatten(1, (-1, GROUP)) * scale.float()[..., None]).flatten(1)[:, :columns]
