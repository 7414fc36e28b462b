"""The first rival of every run: keep the reference whole, fit a logistic regression on each device.

The reference is not trained at all. Its weights are rounded to int8, its features are pooled as it
was pre-trained, and each device fits a regression to its own samples. Nothing is sent, unless the
regressions are averaged once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from acme_fleet.data.partition import World
from acme_fleet.data.samples import Samples
from acme_fleet.fleet import Pooling
from acme_fleet.models.pooling import poolings_of
from acme_fleet.models.probe import (
    Features,
    Labels,
    Probe,
    Scaling,
    average,
    choose_pooling,
    fit_probe,
    pooled_features,
)


@dataclass(frozen=True)
class ProbeResult:
    """The rival on every device's own full test set.

    Attributes:
        pooling: how features were pooled; none where they are the raw inputs.
        alone, averaged: accuracy by device, with its own regression and with the mean of all.
        size_bytes: of the whole reference and a regression in float32.
        size_bytes_int8: with one byte for each weight of a matrix and four for each row's scale.
            The accuracies are of this one.
    """

    pooling: Pooling | None
    alone: dict[str, float]
    averaged: dict[str, float]
    size_bytes: int
    size_bytes_int8: int


def measure_probe(
    backbone: PreTrainedModel | None,
    pooling: Pooling | None,
    world: World,
    progress: Callable[[int, int], None],
) -> ProbeResult:
    """Measure the rival on the fleet's own splits.

    Args:
        backbone: the whole pre-trained reference; its weights are rounded in place. Without one
            the features are the raw inputs.
        pooling: how the reference was pre-trained to be pooled; none lets public validation data
            choose.
        world: everybody's samples.
        progress: called with the devices that are done, and all.
    """
    if backbone is not None:
        round_to_int8(backbone)
        if pooling is None:
            ways = poolings_of(backbone.config, None)
            pooling, _ = choose_pooling(backbone, world.public, len(world.classes), ways)

    def features(samples: Samples) -> Features:
        if backbone is None:
            return torch.cat([x.flatten(1) for x in samples.inputs.values()], dim=1).numpy()
        assert pooling is not None
        return pooled_features(backbone, samples, [pooling])[pooling]

    scaling = Scaling.of(features(world.public.train))  # public, so that all devices share it

    def read(samples: Samples) -> tuple[Features, Labels]:
        return features(samples), samples.labels.numpy()

    probes, tests = {}, {}
    for done, (name, own) in enumerate(world.private.items(), 1):
        probes[name] = fit_probe(read(own.train), read(own.validation), len(world.classes), scaling)
        tests[name] = read(own.test)
        progress(done, len(world.private))
    together = average(list(probes.values()))

    def among_own(name: str) -> Probe:
        own = np.intersect1d(probes[name].seen, together.seen)
        return Probe(together.weight, together.bias, own) if len(own) else probes[name]

    row = 4 * (len(scaling.mean) + 1) * max(len(probe.seen) for probe in probes.values())
    return ProbeResult(
        pooling=pooling,
        alone={name: probe.accuracy(*tests[name]) for name, probe in probes.items()},
        averaged={name: among_own(name).accuracy(*tests[name]) for name in probes},
        size_bytes=row + (0 if backbone is None else _bytes(backbone, int8=False)),
        size_bytes_int8=row + (0 if backbone is None else _bytes(backbone, int8=True)),
    )


# --- int8 -------------------------------------------------------------------------------------


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    kinds = nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d
    found = [module for module in model.modules() if isinstance(module, kinds)]
    return [module.get_parameter("weight") for module in found]


@torch.no_grad()
def round_to_int8(model: nn.Module) -> None:
    """Round each row of every matrix to 255 levels, in place."""
    for weight in _matrices(model):
        rows = weight.flatten(1)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-9) / 127
        weight.copy_(((rows / scale).round() * scale).view_as(weight))


def _bytes(model: nn.Module, *, int8: bool) -> int:
    total = 4 * sum(parameter.numel() for parameter in model.parameters())
    if int8:
        total -= sum(3 * weight.numel() - 4 * len(weight) for weight in _matrices(model))
    return total
