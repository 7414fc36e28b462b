"""ζ(θ) of the paper, and the exact size of what ships, known before anything is built."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from torch import nn

from acme_fleet.config.devices import Precision

Shapes = Mapping[str, tuple[int, ...]]

_BYTES = {"F32": 4, "F16": 2, "I8": 1, "U8": 1}  # in the order of safetensors' files
_FLOATS: dict[str, str] = {"float32": "F32", "float16": "F16"}
GROUP = 32
"""Weights of a row that have one scale at int4."""
SCALE = "_scale"
"""End of a scale's name, behind its weight's."""


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


Stored = dict[str, tuple[str, tuple[int, ...]]]
"""What a file holds: by name, safetensors' type and the shape."""


def stored_tensors(shapes: Shapes, precision: Precision) -> Stored:
    """Tensors of a file at a precision, see :mod:`acme_fleet.models.backbone.precision`.

    At ``int8`` every weight of two dimensions or more (of Linears, convolutions, embedding tables)
    is one byte a scalar, with one 4-byte scale for each of its rows, named ``NAME_scale``. At
    ``int4`` a matrix is half a byte a scalar, with a 2-byte scale for each group of 32 in a row;
    a convolution is as at ``int8``. All else stays in 4 bytes: biases, normalisations, class token,
    position embeddings of images.
    """
    if precision in _FLOATS:
        return {name: (_FLOATS[precision], shape) for name, shape in shapes.items()}
    tensors: Stored = {}
    for name, shape in shapes.items():
        if not (name.endswith(".weight") and len(shape) > 1):
            tensors[name] = ("F32", shape)
        elif precision == "int4" and len(shape) == 2:
            groups = math.ceil(shape[1] / GROUP)
            tensors[name] = ("U8", (shape[0], groups * GROUP // 2))
            tensors[name + SCALE] = ("F16", (shape[0], groups))
        else:
            tensors[name] = ("I8", shape)
            tensors[name + SCALE] = ("F32", shape[:1])
    return tensors


def stored_model(backbone: Shapes, header: Shapes, precision: Precision) -> Stored:
    """Tensors of the file that ships: the backbone at its precision, the header in float32."""
    parts = {"backbone": stored_tensors(backbone, precision)}
    parts["header"] = stored_tensors(header, "float32")
    return {f"{part}.{name}": kind for part, of in parts.items() for name, kind in of.items()}


def file_size(shapes: Shapes, precision: Precision = "float32") -> int:
    """Exact bytes of the safetensors file of these tensors."""
    return stored_size(stored_tensors(shapes, precision))


def stored_size(tensors: Stored) -> int:
    """Exact bytes of a safetensors file (8-byte length, header, tensors)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # safetensors goes by type, then by name; offsets are written out in digits.
    types = list(_BYTES)
    for name in sorted(tensors, key=lambda name: (types.index(tensors[name][0]), name)):
        code, shape = tensors[name]
        end = offset + math.prod(shape) * _BYTES[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + math.ceil(length / 8) * 8 + offset
