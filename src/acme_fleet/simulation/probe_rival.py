"""The first rival of every run: keep the reference whole, fit a logistic regression on each device.

The reference is not trained at all. Its weights are rounded to int8, its features are pooled as it
was pre-trained, and each device fits a regression to its own samples. Nothing is sent, unless the
regressions are averaged once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.partition import World
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.models.pooling import poolings_of
from acme_fleet.models.probe import choose_pooling, pooled_features
from acme_fleet.tasks.probe import Features, Probe, Read, Scaling, average, fit_probe


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
            choose or, if they have no labels, takes its family's own way.
        world: everybody's samples.
        progress: called with the devices that are done, and all.
    """
    classes = len(world.classes)
    encoder = Encoder.rounded(backbone, pooling, world.public, classes)
    scaling = Scaling.of(encoder.features(world.public.train))  # public, so all devices share it
    result = measure_regressions(world.private, encoder.read, classes, scaling, progress)
    row = 4 * (len(scaling.mean) + 1) * result.largest
    return ProbeResult(
        pooling=encoder.pooling,
        alone=result.alone,
        averaged=result.averaged,
        size_bytes=row + encoder.size_bytes(int8=False),
        size_bytes_int8=row + encoder.size_bytes(int8=True),
    )


@dataclass(frozen=True)
class Encoder:
    """The whole reference, never trained; without a backbone features are the raw inputs."""

    backbone: PreTrainedModel | None
    pooling: Pooling | None

    @staticmethod
    def rounded(
        backbone: PreTrainedModel | None, pooling: Pooling | None, public: Splits, classes: int
    ) -> Encoder:
        """Round the backbone's weights to int8 in place, and choose its pooling.

        Args:
            backbone: none for raw inputs.
            pooling: none lets public validation data choose, or is the family's without labels.
            public: samples for that choice.
            classes: of the whole fleet.
        """
        if backbone is not None:
            round_to_int8(backbone)
            if pooling is None:
                ways = poolings_of(backbone.config, None)
                pooling = ways[0]
                if public.labelled:
                    pooling, _ = choose_pooling(fit_probe, backbone, public, classes, ways)
        return Encoder(backbone, pooling)

    def features(self, samples: Samples) -> Features:
        """Pooled features, or the raw inputs."""
        if self.backbone is None:
            raw = [x.flatten(1) for x in samples.inputs.values()]
            return torch.cat(raw, dim=1).numpy()
        assert self.pooling is not None
        return pooled_features(self.backbone, samples, [self.pooling])[self.pooling]

    def read(self, samples: Samples) -> Read:
        """Features and labels."""
        return self.features(samples), samples.labels.numpy()

    def size_bytes(self, *, int8: bool) -> int:
        """Bytes of the backbone's weights; zero without one."""
        return 0 if self.backbone is None else _bytes(self.backbone, int8=int8)


@dataclass(frozen=True)
class Regressions:
    """Accuracy by device with its own regression and with the mean of all of them.

    ``largest`` is the most classes that one of them tells apart.
    """

    alone: dict[str, float]
    averaged: dict[str, float]
    largest: int


def measure_regressions(
    private: Mapping[str, Splits],
    read: Callable[[Samples], Read],
    classes: int,
    scaling: Scaling,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Regressions:
    """Fit a regression on each device, and test each and their mean on its full test set.

    Args:
        private: by device.
        read: features and labels of samples.
        classes: of the whole fleet.
        scaling: of the features, the same for all devices.
        progress: called with the devices that are done, and all.
    """
    probes, tests = {}, {}
    for done, (name, own) in enumerate(private.items(), 1):
        probes[name] = fit_probe(read(own.train), read(own.validation), classes, scaling)
        tests[name] = read(own.test)
        progress(done, len(private))
    together = average(list(probes.values()))

    def among_own(name: str) -> Probe:
        own = np.intersect1d(probes[name].seen, together.seen)
        return Probe(together.weight, together.bias, own) if len(own) else probes[name]

    return Regressions(
        alone={name: probe.accuracy(*tests[name]) for name, probe in probes.items()},
        averaged={name: among_own(name).accuracy(*tests[name]) for name in probes},
        largest=max(len(probe.seen) for probe in probes.values()),
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
