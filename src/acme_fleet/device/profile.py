"""What a model costs on this device, measured."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn


@torch.no_grad()
def measure_latency(model: nn.Module, inputs: dict[str, Tensor], runs: int = 20) -> float:
    """Median seconds of one forward pass on ``inputs``, after a warm-up."""
    for _ in range(3):
        model(**inputs)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        model(**inputs)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
