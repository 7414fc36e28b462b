"""Importance of each part of the header on the device's own data (Eq. 16-18)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.data.samples import Samples
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header
from acme_fleet.tasks.base import Task


class ImportanceAccumulator:
    """Mean over iterations of Q = (g·v)², summed over each neuron's parameters (Eq. 17-18).

    A neuron is an output channel of a layer; its parameters are its row of weights and its bias.
    Sums are what is uploaded: Eq. 21 is linear, so the decisions are those of full sets. Iterations
    of a training that diverges, whose numbers are none, do not count.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        layers = header.plan.layers
        self._sums = ImportanceSet.zeros({name: len(of.outputs) for name, of in layers.items()})
        self._iterations = 0

    def add(self) -> None:
        """Take in the gradients that the header's parameters hold now."""
        sums = self._sums + self._squares("weight") + self._squares("bias")
        if sums.finite():
            self._sums = sums
            self._iterations += 1

    def _squares(self, part: str) -> ImportanceSet:
        """(g·v)² of the layers' weights or biases, summed over each neuron."""
        sums = {}
        for name in self._sums.layers:
            parameter = self._header.layers[name].get_parameter(part)
            assert parameter.grad is not None
            squared = (parameter.grad * parameter.detach()).square()
            sums[name] = squared.reshape(len(squared), -1).sum(dim=1)
        return ImportanceSet.of(sums)

    def result(self, channels: int) -> ImportanceSet:
        """Importance with ``channels`` numbers a layer; a pruned channel has none.

        Alike for all if no iteration counts or told anything: the layers of a header that answers
        as its linear part alone have no gradient at first.
        """
        mean = self._sums / self._iterations if self._sums.any() else None
        importance = {}
        for name, layer in self._header.plan.layers.items():
            importance[name] = torch.zeros(channels)
            importance[name][list(layer.outputs)] = 1.0 if mean is None else mean[name]
        return ImportanceSet.of(importance)


@torch.no_grad()
def ablation_importance(
    task: Task, header: Header, samples: Samples, layer: str
) -> Float[Tensor, " neurons"]:
    """(L − L without the neuron)², one neuron at a time (Eq. 16).

    The oracle of the Taylor form: one pass over the data for each neuron.
    """

    def loss() -> Tensor:
        return task.loss(header(**samples.inputs), samples.labels)

    full, convolution = loss(), header.layers[layer]
    assert isinstance(convolution.weight, Tensor)
    assert isinstance(convolution.bias, Tensor)
    result = []
    for neuron in range(len(convolution.weight)):
        weight, bias = convolution.weight[neuron].clone(), convolution.bias[neuron].clone()
        convolution.weight[neuron], convolution.bias[neuron] = 0, 0
        result.append((full - loss()).square())
        convolution.weight[neuron], convolution.bias[neuron] = weight, bias
    return torch.stack(result)


def neurons_to_keep(
    importance: ImportanceSet,
    kept: Mapping[str, tuple[int, ...]],
    share: float,
) -> dict[str, tuple[int, ...]]:
    """Drop the preset share of the least important neurons over all layers, one left in each.

    Args:
        importance: of all channels.
        kept: by layer, the channels that are left so far.
        share: of all neurons left so far, how many are dropped (rounded down).
    """
    by_layer = importance.by_layer()
    ranked = sorted(
        (float(by_layer[layer][channel]), layer, channel)
        for layer, channels in kept.items()
        for channel in channels
    )
    left = {layer: set(channels) for layer, channels in kept.items()}
    to_drop = int(share * len(ranked))
    for _, layer, channel in ranked:
        if to_drop == 0:
            break
        if len(left[layer]) > 1:
            left[layer].remove(channel)
            to_drop -= 1
    return {layer: tuple(sorted(channels)) for layer, channels in left.items()}
