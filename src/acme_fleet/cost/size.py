"""ζ(θ) of the paper, and the exact size of what ships, known before anything is built."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import nn

_DTYPES = {torch.float32: ("F32", 4), torch.float16: ("F16", 2), torch.int8: ("I8", 1)}


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


def parameter_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of scalars in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def file_size(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> int:
    """Exact bytes of the safetensors file of these tensors (8-byte length, header, tensors)."""
    code, width = _DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        end = offset + math.prod(shapes[name]) * width
        header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + math.ceil(length / 8) * 8 + offset
