"""Personalised aggregation of importance sets (Eq. 21)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ImportanceSet = Mapping[str, Float[Tensor, " channels"]]
"""Importance by layer, one number for each of its channels."""


def normalize(importance: ImportanceSet) -> dict[str, Tensor]:
    """Scale a set to sum 1, so that no device's loss scale outvotes the others."""
    total = sum(float(values.double().sum()) for values in importance.values())
    return {layer: values / total for layer, values in importance.items()}


def aggregate(
    sets: Mapping[str, ImportanceSet], weights: Float[np.ndarray, "devices devices"]
) -> dict[str, dict[str, Tensor]]:
    """Q'_n = Σ_i ŵ_{n,i} Q_i for every device (Eq. 21).

    Args:
        sets: an importance set for each device, all with the same layers and shapes.
        weights: Ŵ, rows and columns in the order of ``sets``.
    """
    names = list(sets)
    normalized = [normalize(sets[name]) for name in names]
    mixed: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for layer in normalized[0]:
        stacked = torch.stack([own[layer] for own in normalized])
        combined = torch.from_numpy(weights).to(stacked.dtype) @ stacked
        for row, name in enumerate(names):
            mixed[name][layer] = combined[row]
    return mixed


def present(
    weights: Float[np.ndarray, "devices devices"], index: list[int]
) -> Float[np.ndarray, "present present"]:
    """The weights among those who answered, rows summing to 1 again."""
    chosen = weights[np.ix_(index, index)]
    return chosen / chosen.sum(axis=1, keepdims=True)
