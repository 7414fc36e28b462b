"""The processor that training runs on, and the numbers of its matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from acme_fleet.errors import FleetError
from acme_fleet.runs.sealed import STRICT, if_sound, read_sealed_json, write_sealed_json

Numbers = Literal["float32", "bfloat16"]
Compute = Literal["auto", "float32", "bfloat16"]
_FASTER = 1.15  # so much faster bfloat16 must be: a gain that every measurement sees
_REPEATS = 3


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


def mixed_precision(
    device: torch.device, numbers: Numbers | None = None
) -> AbstractContextManager[object]:
    """Matrix products of forward passes in ``numbers``; weights and sums stay in float32.

    By default bfloat16 on a GPU, and float32 elsewhere.
    """
    numbers = numbers or ("bfloat16" if device.type == "cuda" else "float32")
    return nullcontext() if numbers == "float32" else torch.autocast(device.type, torch.bfloat16)


def has_bfloat16(device: torch.device) -> bool:
    """True if the processor itself multiplies in bfloat16 (AMX, AVX512-BF16, most GPUs)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class _Decided:
    """``compute.json``: a training that goes on keeps its numbers."""

    __pydantic_config__ = STRICT

    numbers: Numbers


def training_numbers(
    compute: Compute, module: nn.Module, loss: Callable[[], Tensor], path: Path
) -> Numbers:
    """The numbers to train with: those that are set, or the faster ones.

    ``auto`` is bfloat16 where the processor has it and a measured step with it is faster.

    Args:
        compute: the setting.
        module, loss: see :func:`faster_numbers`.
        path: keeps the decision, so that an interrupted training goes on with it.

    Raises:
        WriteError: if the decision cannot be written.
    """
    if compute == "auto" and if_sound(path, _read) is None:
        write_sealed_json(path, asdict(_Decided(faster_numbers(module, loss))))
    return known_numbers(compute, path)


def known_numbers(compute: Compute, path: Path) -> Numbers:
    """The decision of :func:`training_numbers`; float32 where it was not asked yet."""
    if compute != "auto":
        return compute
    known = if_sound(path, _read)
    return "float32" if known is None else known.numbers


def _read(path: Path) -> _Decided:
    return read_sealed_json(path, _Decided)


def faster_numbers(module: nn.Module, loss: Callable[[], Tensor]) -> Numbers:
    """bfloat16 where the processor has it and a measured step with it is faster.

    Args:
        module: what is trained, on its device.
        loss: a forward pass of it on a typical batch; draws no random numbers.
    """
    device = next(module.parameters()).device
    if not has_bfloat16(device):
        return "float32"

    def seconds(numbers: Numbers) -> float:
        started = time.perf_counter()
        with mixed_precision(device, numbers):
            total = loss()
        total.backward()
        total.item()  # a GPU works behind the program's back
        module.zero_grad()
        return time.perf_counter() - started

    kinds: tuple[Numbers, Numbers] = ("float32", "bfloat16")
    for numbers in kinds:
        seconds(numbers)  # warm up
    pairs = [[seconds(numbers) for numbers in kinds] for _ in range(_REPEATS)]
    slow, fast = (min(column) for column in zip(*pairs, strict=True))
    return "bfloat16" if slow >= _FASTER * fast else "float32"
