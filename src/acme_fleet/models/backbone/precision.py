"""Weights at the precision that they are stored in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acme_fleet.cost.size import Precision, stored_tensors


def pack(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Tensors as a file at this precision holds them, see :func:`stored_tensors`.

    At ``int8`` each row of a weight is divided by its scale, its largest magnitude over 127, and
    rounded.
    """
    if precision != "int8":
        return {
            n: t.to(torch.float32 if precision == "fp32" else torch.float16)
            for n, t in tensors.items()
        }
    packed: dict[str, Tensor] = {}
    stored = stored_tensors({n: tuple(t.shape) for n, t in tensors.items()}, precision)
    for name, tensor in tensors.items():
        packed[name] = tensor.to(torch.float32)
        if stored[name][0] == "I8":
            scale = packed[name].flatten(1).abs().amax(dim=1).clamp_min(1e-30) / 127
            packed[f"{name}_scale"] = scale
            packed[name] = (packed[name] / _per_row(scale, tensor)).round().to(torch.int8)
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`pack`, in float32: at ``int8`` to within half of a row's scale."""
    return {
        name: packed[name].float() * _per_row(packed[f"{name}_scale"], tensor)
        if tensor.dtype == torch.int8
        else tensor.float()
        for name, tensor in packed.items()
        if not name.endswith(".weight_scale")
    }


def _per_row(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))
