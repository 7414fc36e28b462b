"""ζ(θ) of the paper, and the exact size of what ships, known before anything is built."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Literal

from torch import nn

Precision = Literal["fp32", "fp16", "int8"]
Shapes = Mapping[str, tuple[int, ...]]

_BYTES = {"F32": 4, "F16": 2, "I8": 1}


def zeta(depth: int, width: float, head_params: int, hidden: int, neurons: int) -> float:
    """Parameters of the layers as the paper counts them: d·w·(H + 2 ξ_h ξ_f) (Eq. 3).

    Args:
        depth: layers d. width: share w of heads and neurons.
        head_params: H, parameters of all attention heads of a layer.
        hidden: ξ_h. neurons: ξ_f.
    """
    return depth * width * (head_params + 2 * hidden * neurons)


def shapes_of(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of everything that a file of this module holds; works on the meta device."""
    return {prefix + name: tuple(value.shape) for name, value in module.state_dict().items()}


def parameter_count(shapes: Shapes) -> int:
    """Number of scalars in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def stored_tensors(shapes: Shapes, precision: Precision) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of a file at a precision: by name, safetensors' type and the shape.

    At ``int8`` every weight of two dimensions or more (of Linears, convolutions, embedding tables)
    is one byte a scalar, with one 4-byte scale for each of its rows, named ``NAME_scale``. All
    else stays in 4 bytes: biases, normalisations, class token, position embeddings of images.
    """
    if precision != "int8":
        return {name: ("F32" if precision == "fp32" else "F16", s) for name, s in shapes.items()}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) > 1:
            tensors[name] = ("I8", shape)
            tensors[f"{name}_scale"] = ("F32", shape[:1])
        else:
            tensors[name] = ("F32", shape)
    return tensors


def file_size(shapes: Shapes, precision: Precision = "fp32") -> int:
    """Exact bytes of the safetensors file of these tensors (8-byte length, header, tensors)."""
    tensors = stored_tensors(shapes, precision)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # safetensors puts wider types first, then goes by name; offsets are written out in digits.
    for name in sorted(tensors, key=lambda name: (-_BYTES[tensors[name][0]], name)):
        code, shape = tensors[name]
        end = offset + math.prod(shape) * _BYTES[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + math.ceil(length / 8) * 8 + offset
