"""The mean of models that the evaluation's FedAvg takes is the one that Flower's strategy takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.network

sys.path.append(str(Path(__file__).parents[2] / "experiments"))


def test_mean_of_models_is_flowers():
    aggregate = pytest.importorskip("flwr.server.strategy.aggregate").aggregate
    from reproduction.federated import averaged

    random = torch.Generator().manual_seed(0)
    models = [
        {"weight": torch.randn(3, 4, generator=random), "bias": torch.randn(3, generator=random)}
        for _ in range(4)
    ]
    samples = [3, 11, 1, 85]
    sent = [([t.numpy() for t in m.values()], n) for m, n in zip(models, samples, strict=True)]
    ours = averaged(models, samples)
    for theirs, name in zip(aggregate(sent), ours, strict=True):
        np.testing.assert_allclose(ours[name].numpy(), theirs, rtol=1e-5, atol=1e-6)
