"""Uneven widths cost what uniform ones cost, and go where importance is."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from acme_fleet.cost.size import parameter_count, shapes_of
from acme_fleet.cost.variant import Variant
from acme_fleet.models.backbone.elastic import Architecture, architecture, as_elastic, extract
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.backbone.uneven_widths import Importance, UnitParams, global_architecture
from acme_fleet.models.families import FAMILIES, Dimensions, dimensions
from acme_fleet.models.features import Classifier, activations

SIZES = Dimensions(layers=3, heads=4, queries_per_head=1, head_dim=4, neurons=12, hidden=16)
PARAMS = UnitParams(head=268, neuron=33)


def random_importance(seed: int, sizes: Dimensions = SIZES, skew: float = 2.0) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(skew * torch.randn(2, sizes.layers, 1, generator=generator))
    heads = torch.rand(sizes.layers, sizes.heads, generator=generator)
    neurons = torch.rand(sizes.layers, sizes.neurons, generator=generator)
    return Importance.sorted(scale[0] * heads, scale[1] * neurons / 8)


def cost(arch: Architecture, params: UnitParams = PARAMS) -> int:
    return params.head * sum(arch.heads) + params.neuron * sum(arch.neurons)


@given(st.integers(0, 1000), st.floats(0.05, 1), st.integers(1, 3))
def test_the_size_is_the_uniform_one(seed: int, width: float, depth: int) -> None:
    uniform = architecture(SIZES, width, depth)
    uneven = global_architecture(uniform, random_importance(seed), PARAMS)
    assert uneven.layers == uniform.layers
    full = (sum(uneven.heads) == 4 * depth) and (sum(uneven.neurons) == 12 * depth)
    left = cost(uniform) - cost(uneven)
    assert left == 0 if full else 0 <= left < PARAMS.neuron or min(uneven.neurons) == 12
    assert all(1 <= heads <= 4 for heads in uneven.heads)
    assert all(
        max(1, n // 4) <= m <= 12 for n, m in zip(uniform.neurons, uneven.neurons, strict=True)
    )


def test_full_width_is_everything() -> None:
    uniform = architecture(SIZES, 1.0, 3)
    assert global_architecture(uniform, random_importance(0), PARAMS) == uniform


def test_units_go_where_importance_is() -> None:
    """Layer 1 matters most; the last layers keep their least."""
    heads = torch.tensor([[9.0, 8, 7, 6], [0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]])
    neurons = torch.full((3, 12), 1e-6)
    uneven = global_architecture(architecture(SIZES, 0.5, 3), Importance(heads, neurons), PARAMS)
    # Beside the least there is room for 3 heads and 15 neurons, or for 4 heads and 6 neurons.
    assert uneven.heads == (4, 2, 1)
    assert sum(uneven.neurons) == 3 + 6


def test_the_choice_is_the_best_where_units_cost_alike() -> None:
    """Against brute force: with equal costs, greedy by importance is optimal."""
    sizes = Dimensions(layers=2, heads=2, queries_per_head=1, head_dim=1, neurons=3, hidden=1)
    params = UnitParams(head=1, neuron=1)
    uniform = Architecture(layers=(0, 1), heads=(1, 1), neurons=(2, 2))
    for seed in range(30):
        importance = random_importance(seed, sizes)
        options = itertools.product(range(1, 3), range(1, 3), range(1, 4), range(1, 4))
        best = max(
            worth(importance, (a, b), (c, d)) for a, b, c, d in options if a + b + c + d == 6
        )
        found = global_architecture(uniform, importance, params)
        assert worth(importance, found.heads, found.neurons) == pytest.approx(best)


def worth(importance: Importance, heads: tuple[int, ...], neurons: tuple[int, ...]) -> float:
    kept = [importance.heads[i, :h].sum() for i, h in enumerate(heads)]
    kept += [importance.neurons[i, :n].sum() for i, n in enumerate(neurons)]
    return float(torch.stack(kept).sum())


def test_only_the_kept_layers_count() -> None:
    importance = random_importance(3)
    for depth in (1, 2):
        uniform = architecture(SIZES, 0.5, depth)
        rows = list(uniform.layers)
        alone = Importance(importance.heads[rows], importance.neurons[rows])
        numbered = Architecture(tuple(range(depth)), uniform.heads, uniform.neurons)
        ours = global_architecture(uniform, importance, PARAMS)
        theirs = global_architecture(numbered, alone, PARAMS)
        assert (ours.heads, ours.neurons) == (theirs.heads, theirs.neurons)


def test_importance_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="descend"):
        Importance(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_unit_params_are_what_the_module_has(
    family: str, plain_backbone: Callable[..., PreTrainedModel]
) -> None:
    backbone = as_elastic(plain_backbone(family))
    layers = (0, 1, 2)

    for hidden in (None, 12):
        params = UnitParams.of(backbone, hidden)

        def count(heads: int, neurons: int, hidden: int | None = hidden) -> int:
            small = extract(backbone, Architecture(layers, (heads, 1, 1), (neurons, 1, 1), hidden))
            return parameter_count(shapes_of(small))

        assert params.head == count(2, 1) - count(1, 1)
        assert params.neuron == count(1, 2) - count(1, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_elastic_classifier_with_importance(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., dict]
) -> None:
    """Views and the extracted module agree on an uneven shape, teachers keep the rule."""
    classifier = make_classifier(family)
    importance = random_importance(1, dimensions(classifier.backbone.config))
    elastic = ElasticClassifier(classifier, importance)
    arch = elastic.shape(Variant(0.5, 3, 0.5))
    assert arch == elastic.frozen_copy().shape(Variant(0.5, 3, 0.5))
    assert arch != ElasticClassifier(classifier).shape(Variant(0.5, 3, 0.5))
    inputs = make_inputs(family)
    with torch.no_grad():
        expected = activations(elastic.extract(arch), inputs).final
        found = elastic.run(arch, inputs).activations.final
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else ...
    torch.testing.assert_close(found[real], expected[real])
