"""Importance of each attention head, MLP neuron and residual channel for the loss (Eq. 6-8)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acme_fleet.config.base import chosen
from acme_fleet.data.samples import Samples
from acme_fleet.models.families import dimensions, family_of
from acme_fleet.models.features import Classifier, activations, moved
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import Task

Objective = Callable[[Classifier, Samples], Float[Tensor, ""]]
"""F of Eq. 6-8: the sum of a batch's own numbers, each of one sample alone."""

_State = Float[Tensor, "batch tokens hidden"] | tuple[Any, ...]
"""A layer's output: the residual state, in some families the first of several things."""


class UnitImportance(NamedTuple):
    """I_h of each unit of a reference.

    Attributes:
        heads: for grouped-query attention a key/value head with all queries that share it.
        neurons: of the MLPs.
        channels: of the residual stream, which all layers share: one ranking for the network.
    """

    heads: Float[Tensor, "layers heads"]
    neurons: Float[Tensor, "layers neurons"]
    channels: Float[Tensor, " hidden"]


class _Outputs(NamedTuple):
    """O of Eq. 6-8 in one forward pass, layer by layer.

    Attributes:
        heads: what enters the output projections.
        neurons: what enters the second MLP matrices.
        states: the residual states: what enters each layer, and what leaves the last one.
    """

    heads: list[Float[Tensor, "batch tokens heads"]]
    neurons: list[Float[Tensor, "batch tokens neurons"]]
    states: list[Float[Tensor, "batch tokens hidden"]]


def labels_objective(task: Task) -> Objective:
    """Each sample's loss."""

    def of(model: Classifier, batch: Samples) -> Float[Tensor, ""]:
        outputs = model(**batch.inputs)
        return task.loss(outputs, batch.labels.to(outputs.device), "sum")

    return of


def features_objective(generator: torch.Generator) -> Objective:
    """First-order change of the pooled vector; no labels (METHOD 16).

    The features' own squared error has no slope where it is zero. The product of the vector with
    random signs has: its slope, squared, is in the mean that of the vector's squared length.

    Args:
        generator: draws a sign for each sample and channel.
    """

    def of(model: Classifier, batch: Samples) -> Float[Tensor, ""]:
        pooled = activations(model.backbone, moved(batch.inputs, model.backbone.device)).pooled
        signs = torch.randint(2, pooled.shape, generator=generator) * 2 - 1
        return (pooled * signs.to(pooled)).sum()

    return of


OBJECTIVES: dict[str, Callable[[Task, torch.Generator], Objective]] = {
    "labels": lambda task, _: labels_objective(task),
    "features": lambda _, generator: features_objective(generator),
}
"""F by ``backbone.importance``. A new criterion is an entry here."""
_AUTO = "auto"


def check_objective(name: str) -> None:
    """Refuse a name of ``backbone.importance`` that stands for nothing.

    Raises:
        FleetError: naming those there are.
    """
    chosen({_AUTO: None, **OBJECTIVES}, name, "backbone.importance")


def objective_of(task: Task, name: str, generator: torch.Generator, *, labelled: bool) -> Objective:
    """F by its name in a fleet file; ``auto`` is the labels' where the samples have some.

    Raises:
        FleetError: if there is none of this name.
    """
    if name == _AUTO:
        name = "labels" if labelled else "features"
    return chosen(OBJECTIVES, name, "backbone.importance")(task, generator)


def taylor_importance(
    model: Classifier,
    samples: Samples,
    objective: Objective,
    batch_size: int = 64,
) -> UnitImportance:
    """First-order importance I_h ≈ |∂F/∂O_h · O_h|, mean over samples (Eq. 8).

    That of a residual channel is the sum over the layers' residual states. One forward and one
    backward pass a batch serve all units of all layers. F is each sample's own, so the result does
    not depend on the batches.

    Args:
        model: a reference of full width.
        samples: training or held-out training data, never test data.
        objective: F.
        batch_size: samples in one pass.
    """
    found = _zeros(model)
    heads, neurons, channels = found
    batches, _ = by_length(samples, batch_size)  # all layers' outputs are kept: no padding
    for batch in batches:
        with _record_outputs(model) as outputs:
            change = objective(model, batch)
        recorded = [*outputs.heads, *outputs.neurons, *outputs.states]
        slopes = torch.autograd.grad(change, recorded)
        effects = (output * slope for output, slope in zip(recorded, slopes, strict=True))
        for layer, effect in enumerate(itertools.islice(effects, len(heads))):
            by_head = effect.unflatten(-1, (heads.shape[1], -1))
            heads[layer] += by_head.sum(dim=(1, 3)).abs().sum(dim=0).detach().cpu()
        for layer, effect in enumerate(itertools.islice(effects, len(neurons))):
            neurons[layer] += effect.sum(dim=1).abs().sum(dim=0).detach().cpu()
        for effect in effects:
            channels += effect.sum(dim=1).abs().sum(dim=0).detach().cpu()
    return UnitImportance(*(values / len(samples) for values in found))


@torch.no_grad()
def ablation_importance(
    task: Task, model: Classifier, samples: Samples, layer: int, *, heads: bool
) -> Float[Tensor, " units"]:
    """I_h = |F(O_h) − F(O_h = 0)| by removing one unit at a time, mean over samples (Eq. 6).

    One forward pass for each unit: the oracle of :func:`taylor_importance`.

    Args:
        task: F is its loss.
        model: a reference of full width.
        samples: what the loss is measured on.
        layer: index of the layer.
        heads: whether to remove heads or neurons.
    """
    family, sizes = family_of(model.backbone.config), dimensions(model.backbone.config)
    units = sizes.heads if heads else sizes.neurons
    linear = _layers(model)[layer].get_submodule(family.output if heads else family.neurons_out)

    def without(unit: int) -> RemovableHandle:
        return linear.register_forward_pre_hook(lambda _, x: (_cleared(x[0], unit, units),))

    return _effects_of_removal(task, model, samples, units, without)


@torch.no_grad()
def channel_ablation(task: Task, model: Classifier, samples: Samples) -> Float[Tensor, " hidden"]:
    """The same of each residual channel: I_c = Σ |F(x) − F(x, x_c = 0)| over the residual states x.

    One forward pass for each channel and state.
    """
    layers, count = _layers(model), dimensions(model.backbone.config).hidden

    def entering(layer: nn.Module) -> Callable[[int], RemovableHandle]:
        return lambda channel: layer.register_forward_pre_hook(
            lambda _, x: (_cleared(x[0], channel, count), *x[1:])
        )

    def leaving(channel: int) -> RemovableHandle:
        def clear(_: nn.Module, x: object, state: _State) -> _State:
            if isinstance(state, tuple):
                return (_cleared(state[0], channel, count), *state[1:])
            return _cleared(state, channel, count)

        return layers[-1].register_forward_hook(clear)

    states = [*map(entering, layers), leaving]
    total = [_effects_of_removal(task, model, samples, count, without) for without in states]
    return torch.stack(total).sum(dim=0)


def _effects_of_removal(
    task: Task,
    model: Classifier,
    samples: Samples,
    units: int,
    without: Callable[[int], RemovableHandle],
) -> Float[Tensor, " units"]:
    """|F(O_h) − F(O_h = 0)|, mean over samples; ``without`` removes a unit until it is undone."""

    def losses() -> Float[Tensor, " samples"]:
        return task.loss(model(**samples.inputs), samples.labels, "none")

    def changes(full: Float[Tensor, " samples"]) -> Iterator[Float[Tensor, ""]]:
        for unit in range(units):
            with without(unit):
                yield (full - losses()).abs().mean()

    return torch.stack(list(changes(losses())))


def _cleared(
    outputs: Float[Tensor, "batch tokens channels"], unit: int, units: int
) -> Float[Tensor, "batch tokens channels"]:
    """Outputs with those of one unit set to zero."""
    kept = outputs.unflatten(-1, (units, -1)).clone()
    kept[..., unit, :] = 0
    return kept.flatten(-2)


def _layers(model: Classifier) -> list[nn.Module]:
    family = family_of(model.backbone.config)
    return list(model.backbone.get_submodule(family.layers).children())


def _zeros(model: Classifier) -> UnitImportance:
    sizes = dimensions(model.backbone.config)
    return UnitImportance(
        torch.zeros(sizes.layers, sizes.heads),
        torch.zeros(sizes.layers, sizes.neurons),
        torch.zeros(sizes.hidden),
    )


@contextmanager
def _record_outputs(model: Classifier) -> Iterator[_Outputs]:
    """Collect what the units of each layer put out in a forward pass."""
    family, layers = family_of(model.backbone.config), _layers(model)
    outputs, hooks = _Outputs([], [], []), []

    def keep(
        record: list[Float[Tensor, "batch tokens channels"]],
    ) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: record.append(inputs[0])

    for layer in layers:
        attention, mlp = layer.get_submodule(family.output), layer.get_submodule(family.neurons_out)
        for module, record in zip((attention, mlp, layer), outputs, strict=True):
            hooks.append(module.register_forward_pre_hook(keep(record)))

    def keep_last(_: nn.Module, inputs: object, state: _State) -> None:
        outputs.states.append(state[0] if isinstance(state, tuple) else state)

    hooks.append(layers[-1].register_forward_hook(keep_last))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
