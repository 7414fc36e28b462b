"""Importance of each part of the header on the device's own data (Eq. 16-18)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.data.samples import Samples
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
        self._sums = {
            name: torch.zeros(len(layer.outputs)) for name, layer in header.plan.layers.items()
        }
        self._iterations = 0

    def add(self) -> None:
        """Take in the gradients that the header's parameters hold now."""
        sums = {name: total.clone() for name, total in self._sums.items()}
        for name, total in sums.items():
            for parameter in self._header.layers[name].parameters():
                assert parameter.grad is not None
                squared = (parameter.grad * parameter.detach()).square()
                total += squared.reshape(len(total), -1).sum(dim=1)
        if all(bool(total.isfinite().all()) for total in sums.values()):
            self._sums = sums
            self._iterations += 1

    def result(self, channels: int) -> dict[str, Float[Tensor, " channels"]]:
        """Importance by layer; a pruned channel has none.

        Alike for all if no iteration counts or told anything: the layers of a header that answers
        as its linear part alone have no gradient at first.
        """
        told = any(bool(total.any()) for total in self._sums.values())
        importance = {}
        for name, layer in self._header.plan.layers.items():
            importance[name] = torch.zeros(channels)
            mean = self._sums[name] / self._iterations if told else 1.0
            importance[name][list(layer.outputs)] = mean
        return importance


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
    importance: Mapping[str, Float[Tensor, " channels"]],
    kept: Mapping[str, tuple[int, ...]],
    share: float,
) -> dict[str, tuple[int, ...]]:
    """Drop the preset share of the least important neurons over all layers, one left in each.

    Args:
        importance: by layer.
        kept: by layer, the channels that are left so far.
        share: of all neurons left so far, how many are dropped (rounded down).
    """
    ranked = sorted(
        (float(importance[layer][channel]), layer, channel)
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
