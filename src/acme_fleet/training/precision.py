"""The machine part that training runs on, and the precision of its numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from acme_fleet.errors import FleetError


def training_device(name: str, setting: str) -> torch.device:
    """The torch device to train on; ``setting`` is its key in the fleet file.

    Raises:
        FleetError: if there is no such place here.
    """
    if name not in ("cpu", "cuda"):
        raise FleetError(f"{setting}: {name!r} is not known; it is cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise FleetError(f"{setting}: {name} is not here, PyTorch sees no CUDA GPU; say cpu")
    return torch.device(name)


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """On a GPU, matrix products in bfloat16, for forward passes; elsewhere nothing changes."""
    on_gpu = device.type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()
