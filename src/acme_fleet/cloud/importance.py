"""Importance of each attention head and each MLP neuron for the loss (Eq. 6-8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acme_fleet.config.base import chosen
from acme_fleet.data.samples import Samples
from acme_fleet.models.families import dimensions, family_of
from acme_fleet.models.features import Classifier, activations, moved
from acme_fleet.tasks.base import Task

Objective = Callable[[Classifier, Samples], Float[Tensor, ""]]
"""F of Eq. 6-8: the sum of a batch's own numbers, each of one sample alone."""


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


def objective_of(task: Task, name: str, generator: torch.Generator, *, labelled: bool) -> Objective:
    """F by its name in a fleet file; ``auto`` is the labels' where the samples have some.

    Raises:
        FleetError: if there is none of this name.
    """
    if name == "auto":
        name = "labels" if labelled else "features"
    return chosen(OBJECTIVES, name, "backbone.importance")(task, generator)


def taylor_importance(
    model: Classifier,
    samples: Samples,
    objective: Objective,
    batch_size: int = 64,
) -> tuple[Float[Tensor, "layers heads"], Float[Tensor, "layers neurons"]]:
    """First-order importance I_h ≈ |∂F/∂O_h · O_h|, mean over samples (Eq. 8).

    One forward and one backward pass a batch serve all heads and neurons of all layers. F is each
    sample's own, so the result does not depend on the batches.

    Args:
        model: a reference of full width.
        samples: training or held-out training data, never test data.
        objective: F.
        batch_size: samples in one pass.

    Returns:
        Importance of heads and of neurons. For grouped-query attention a head is a key/value head
        with all queries that share it.
    """
    heads, neurons = _zeros(model)
    for batch in samples.batches(batch_size):
        with _record_inputs(model) as (head_outputs, neuron_outputs):
            change = objective(model, batch)
        gradients = torch.autograd.grad(change, head_outputs + neuron_outputs)
        for layer, (output, gradient) in enumerate(
            zip(head_outputs, gradients[: len(heads)], strict=True)
        ):
            by_head = (output * gradient).unflatten(-1, (heads.shape[1], -1))
            heads[layer] += by_head.sum(dim=(1, 3)).abs().sum(dim=0).detach().cpu()
        for layer, (output, gradient) in enumerate(
            zip(neuron_outputs, gradients[len(heads) :], strict=True)
        ):
            neurons[layer] += (output * gradient).sum(dim=1).abs().sum(dim=0).detach().cpu()
    return heads / len(samples), neurons / len(samples)


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
    name = family.output if heads else family.neurons_out
    linear = list(model.backbone.get_submodule(family.layers).children())[layer].get_submodule(name)

    def losses() -> Float[Tensor, " samples"]:
        return task.loss(model(**samples.inputs), samples.labels, "none")

    def without(unit: int) -> Float[Tensor, " samples"]:
        def remove(
            _: nn.Module, inputs: tuple[Float[Tensor, "batch tokens channels"], ...]
        ) -> tuple[Float[Tensor, "batch tokens channels"]]:
            kept = inputs[0].unflatten(-1, (units, -1)).clone()
            kept[..., unit, :] = 0
            return (kept.flatten(-2),)

        hook = linear.register_forward_pre_hook(remove)
        try:
            return losses()
        finally:
            hook.remove()

    full = losses()
    return torch.stack([(full - without(unit)).abs().mean() for unit in range(units)])


def _zeros(
    model: Classifier,
) -> tuple[Float[Tensor, "layers heads"], Float[Tensor, "layers neurons"]]:
    sizes = dimensions(model.backbone.config)
    return torch.zeros(sizes.layers, sizes.heads), torch.zeros(sizes.layers, sizes.neurons)


@contextmanager
def _record_inputs(
    model: Classifier,
) -> Iterator[
    tuple[list[Float[Tensor, "batch tokens heads"]], list[Float[Tensor, "batch tokens neurons"]]]
]:
    """Collect, layer by layer, what enters the output projection and the second MLP matrix."""
    family = family_of(model.backbone.config)
    records: tuple[list[Tensor], list[Tensor]] = ([], [])
    hooks = []
    for layer in model.backbone.get_submodule(family.layers).children():
        for name, record in zip((family.output, family.neurons_out), records, strict=True):

            def keep(
                _: nn.Module,
                inputs: tuple[Float[Tensor, "batch tokens channels"], ...],
                record: list[Float[Tensor, "batch tokens channels"]] = record,
            ) -> None:
                record.append(inputs[0])

            hooks.append(layer.get_submodule(name).register_forward_pre_hook(keep))
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()
