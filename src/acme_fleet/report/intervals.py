"""The uncertainty that few samples leave."""

from __future__ import annotations

import math


def wilson(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share, e.g. of an accuracy."""
    if not samples:
        return 0.0, 1.0
    z2 = 1.959964**2
    center = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    spread = math.sqrt(z2 * (share * (1 - share) / samples + z2 / (4 * samples**2)))
    half = spread / (1 + z2 / samples)
    return max(0.0, center - half), min(1.0, center + half)
