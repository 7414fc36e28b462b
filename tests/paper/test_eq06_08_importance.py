"""Eq. 6-8: importance of heads, neurons and channels, against gates, against exact removal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.importance import (
    ablation_importance,
    channel_ablation,
    features_objective,
    labels_objective,
    taylor_importance,
)
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.backbone.supernet import reorder_classifier
from acme_fleet.models.families import FAMILIES, dimensions
from acme_fleet.models.features import Classifier, activations
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

LABELS = labels_objective(CLASSIFICATION)


def labelled(inputs: dict[str, Tensor]) -> Samples:
    count = len(next(iter(inputs.values())))
    return Samples(inputs, torch.arange(count) % 4, torch.ones(count, dtype=torch.int64))


def layers_of(model: Classifier) -> list[nn.Module]:
    family = FAMILIES[model.backbone.config.model_type.removeprefix("acme_")]
    return list(model.backbone.get_submodule(family.layers).children())


def gate_states(model: Classifier, state: int, gate: Tensor) -> Any:
    """Multiply a residual state by a gate on its channels until the handle is removed."""
    layers = layers_of(model)
    if state < len(layers):
        return layers[state].register_forward_pre_hook(lambda _, x: (x[0] * gate, *x[1:]))

    def leaving(_: nn.Module, inputs: Any, output: Any) -> Any:
        return (output[0] * gate, *output[1:]) if isinstance(output, tuple) else output * gate

    return layers[-1].register_forward_hook(leaving)


def gated_importance(model: Classifier, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """|∂F/∂m| of a gate m = 1 on each unit's output, one sample and one layer at a time.

    ∂F(m·O)/∂m at m = 1 is Σ ∂F/∂O ⊙ O (Eq. 8).
    """
    family = FAMILIES[model.backbone.config.model_type.removeprefix("acme_")]
    sizes = dimensions(model.backbone.config)
    result = []
    for name, units in ((family.output, sizes.heads), (family.neurons_out, sizes.neurons)):
        total = torch.zeros(sizes.layers, units)
        for number, layer in enumerate(layers_of(model)):
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            for index in range(len(samples)):
                one = samples[index : index + 1]
                gate = torch.ones(units, requires_grad=True)
                spread = gate.repeat_interleave(linear.in_features // units)
                hook = linear.register_forward_pre_hook(lambda _, x, s=spread: (x[0] * s,))
                F.cross_entropy(model(**one.inputs), one.labels).backward()
                hook.remove()
                assert gate.grad is not None
                total[number] += gate.grad.abs() / len(samples)
        result.append(total)
    channels = torch.zeros(sizes.hidden)
    for state in range(sizes.layers + 1):
        for index in range(len(samples)):
            one, gate = samples[index : index + 1], torch.ones(sizes.hidden, requires_grad=True)
            with gate_states(model, state, gate):
                F.cross_entropy(model(**one.inputs), one.labels).backward()
            assert gate.grad is not None
            channels += gate.grad.abs() / len(samples)
    return result[0], result[1], channels


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_gradient_of_a_gate(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any]
) -> None:
    model, samples = make_classifier(family, layers=2), labelled(make_inputs(family, samples=3))
    for ours, expected in zip(
        taylor_importance(model, samples, LABELS), gated_importance(model, samples), strict=True
    ):
        assert (expected > 1e-4).any()
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_does_not_depend_on_the_batches(
    batch_size: int, make_classifier: Callable[..., Classifier], make_samples: Callable[..., Any]
) -> None:
    model, samples = make_classifier(), make_samples(10)
    torch.testing.assert_close(
        taylor_importance(model, samples, LABELS, batch_size),
        taylor_importance(model, samples, LABELS, 10),
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_padding_is_not_computed(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any]
) -> None:
    """Outputs of all layers are in memory at once: none are those of padded positions."""
    model, inputs = make_classifier(family), make_inputs(family)
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    padded = {name: F.pad(values, (0, 9)) for name, values in inputs.items()}
    widths: list[int] = []
    layer = layers_of(model)[0]
    hook = layer.register_forward_pre_hook(lambda _, x: widths.append(x[0].shape[1]))
    found = taylor_importance(model, labelled(padded), LABELS)
    hook.remove()
    assert widths == [longest]
    torch.testing.assert_close(found, taylor_importance(model, labelled(inputs), LABELS))


def test_leaves_no_trace(
    make_classifier: Callable[..., Classifier], make_samples: Callable[..., Any]
) -> None:
    """No hook stays, no gradient gathers, and the result carries no graph."""
    model, samples = make_classifier(), make_samples(5)
    first = taylor_importance(model, samples, LABELS)
    hooks = [len(module._forward_hooks) for module in model.modules()]  # Hugging Face's own
    again = taylor_importance(model, samples, LABELS)
    assert all(map(torch.equal, first, again))
    assert not any(values.requires_grad for values in first)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_grouped_queries_have_one_importance_for_each_group(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any]
) -> None:
    """Six query heads share three key/value heads: three units of two queries each."""
    model, samples = make_classifier(family, layers=2), labelled(make_inputs(family))
    assert dimensions(model.backbone.config).queries_per_head == 2
    heads, neurons, _ = taylor_importance(model, samples, LABELS)
    assert heads.shape == (2, 3)
    assert neurons.shape == (2, 10)
    assert ablation_importance(CLASSIFICATION, model, samples, 0, heads=True).shape == (3,)
    assert ablation_importance(CLASSIFICATION, model, samples, 1, heads=False).shape == (10,)


@pytest.mark.parametrize("family", ["vit", "bert", "llama"])
def test_importance_of_a_reordered_model_descends(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any]
) -> None:
    """Importance and re-ordering mean the same units."""
    model, samples = make_classifier(family), labelled(make_inputs(family))
    found = taylor_importance(model, samples, LABELS)
    ordered = reorder_classifier(model, *found)
    for before, after in zip(found, taylor_importance(ordered, samples, LABELS), strict=True):
        descending = before.sort(dim=-1, descending=True).values
        torch.testing.assert_close(after, descending, rtol=1e-3, atol=1e-5)


# --- Eq. 6, the exact form --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "llama"])
def test_ablation_equals_zeroing_the_weights_that_read_the_unit(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any]
) -> None:
    model, samples = make_classifier(family, layers=2), labelled(make_inputs(family))
    names, sizes = FAMILIES[family], dimensions(model.backbone.config)

    @torch.no_grad()
    def losses() -> Tensor:
        return F.cross_entropy(model(**samples.inputs), samples.labels, reduction="none")

    full = losses()
    for heads, name, units in (
        (True, names.output, sizes.heads),
        (False, names.neurons_out, sizes.neurons),
    ):
        linear = layers_of(model)[1].get_submodule(name)
        assert isinstance(linear, nn.Linear)
        expected, width = [], linear.in_features // units
        for unit in range(units):
            original = linear.weight.data.clone()
            linear.weight.data[:, unit * width : (unit + 1) * width] = 0
            expected.append((full - losses()).abs().mean())
            linear.weight.data = original
        ours = ablation_importance(CLASSIFICATION, model, samples, 1, heads=heads)
        torch.testing.assert_close(ours, torch.stack(expected))
        assert torch.equal(losses(), full)


@pytest.mark.parametrize("family", FAMILIES)
def test_channel_ablation_equals_a_model_without_the_channel(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any]
) -> None:
    """A gate that is zero for a channel, one residual state after the other."""
    model, samples = make_classifier(family, layers=2), labelled(make_inputs(family, samples=3))
    hidden = dimensions(model.backbone.config).hidden

    @torch.no_grad()
    def losses() -> Tensor:
        return F.cross_entropy(model(**samples.inputs), samples.labels, reduction="none")

    full, expected = losses(), torch.zeros(hidden)
    for state in range(3):
        for channel in range(hidden):
            gate = torch.ones(hidden)
            gate[channel] = 0
            with gate_states(model, state, gate):
                expected[channel] += (full - losses()).abs().mean()
    found = channel_ablation(CLASSIFICATION, model, samples)
    assert (found > 1e-4).any()
    torch.testing.assert_close(found, expected)
    assert torch.equal(losses(), full)


def test_channels_equal_their_ablation_where_the_loss_is_linear() -> None:
    """Attention and MLP read nothing here: states add up, and only the classifier reads them."""
    model, samples = linear_loss()
    still = copy.deepcopy(model)
    for name in ("attention.v_proj", "mlp.fc1"):
        nn.init.zeros_(still.backbone.layers[0].get_submodule(name).weight)
    exact = channel_ablation(CLASSIFICATION, still, samples)
    assert exact.min() > 0.01
    torch.testing.assert_close(
        taylor_importance(still, samples, LABELS).channels, exact, rtol=1e-3, atol=1e-3
    )


class _Sum(nn.Module):
    """Attention and MLP side by side."""

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention.o_proj(self.attention.v_proj(x).tanh())
        return x + attended + self.mlp.fc2(self.mlp.fc1(x).relu())


class _Additive(PreTrainedModel):
    """One layer whose heads and neurons add up in the hidden state, with nothing after it."""

    config_class = ViTConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        size, neurons = config.hidden_size, config.intermediate_size
        layer = _Sum()
        layer.attention, layer.mlp = nn.Module(), nn.Module()
        layer.attention.v_proj, layer.attention.o_proj = (
            nn.Linear(size, size),
            nn.Linear(size, size),
        )
        layer.mlp.fc1, layer.mlp.fc2 = nn.Linear(size, neurons), nn.Linear(neurons, size)
        self.layers, self.start = nn.ModuleList([layer]), nn.Parameter(torch.zeros(size))
        self.post_init()

    def forward(self, pixel_values: Tensor, output_hidden_states: bool) -> BaseModelOutput:
        x = pixel_values + self.start
        last = self.layers[0](x)
        return BaseModelOutput(last_hidden_state=last, hidden_states=(x, last))


def linear_loss() -> tuple[Classifier, Samples]:
    """With logits (0, z) and answer 0 the loss log(1 + exp z) is z for a large z."""
    config = ViTConfig(
        hidden_size=8, num_attention_heads=4, intermediate_size=6, num_hidden_layers=1
    )
    config.pooling = "first"
    generator = torch.Generator().manual_seed(0)
    backbone, head = _Additive(config), nn.Linear(8, 2)
    for parameter in (*backbone.parameters(), *head.parameters()):
        parameter.data.normal_(generator=generator)
    head.weight.data[0], head.bias.data[0], head.bias.data[1] = 0, 0, 200
    model, count = Classifier(backbone, head), 5
    samples = Samples(
        {"pixel_values": torch.randn(count, 3, 8, generator=generator)},
        torch.zeros(count, dtype=torch.int64),
        torch.ones(count, dtype=torch.int64),
    )
    assert (model(**samples.inputs)[:, 1] > 100).all()
    return model, samples


def test_equals_the_ablation_where_the_loss_is_linear() -> None:
    model, samples = linear_loss()
    heads, neurons, _ = taylor_importance(model, samples, LABELS)
    assert heads.min() > 0.1
    for ours, is_head in ((heads, True), (neurons, False)):
        exact = ablation_importance(CLASSIFICATION, model, samples, 0, heads=is_head)
        torch.testing.assert_close(ours[0], exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_without_labels_it_is_how_far_the_features_move(
    make_classifier: Callable[..., Classifier], make_inputs: Callable[..., Any], family: str
) -> None:
    """The mean over signs of slope² is the squared length of the first-order change."""
    model, samples = make_classifier(family, 2), labelled(make_inputs(family, 1))
    head = layers_of(model)[1].get_submodule(FAMILIES[family].output)
    pooled = lambda: activations(model.backbone, samples.inputs).pooled  # noqa: E731
    before, weight = pooled(), head.weight.data
    units = dimensions(model.backbone.config).heads
    expected, step = [], 1e-3
    for unit in range(units):  # its output made smaller by a thousandth
        kept = weight.clone()
        weight.unflatten(1, (units, -1))[:, unit] *= 1 - step
        expected.append(((pooled() - before) / step).square().sum().item())
        weight.copy_(kept)
    found, draws = torch.zeros(units), 150
    for seed in range(draws):
        signs = torch.Generator().manual_seed(seed)
        heads, _, _ = taylor_importance(model, samples, features_objective(signs))
        found += heads[1].square() / draws
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0.25, atol=1e-6)
    other = Samples(samples.inputs, None, samples.stored_bytes)
    told = [
        taylor_importance(model, x, features_objective(torch.Generator().manual_seed(1)))
        for x in (samples, other)
    ]
    assert torch.equal(told[0][0], told[1][0])


def test_ranks_units_of_a_trained_model_like_their_removal(
    plain_backbone: Callable[..., PreTrainedModel], make_samples: Callable[..., Any]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = AutoModel.from_config(plain_backbone("vit").config, add_pooling_layer=False)
        model = Classifier(as_elastic(backbone), nn.Linear(16, 4))
    training = Training(epochs=10, batch_size=32, learning_rate=4e-3)
    fit(CLASSIFICATION, model, make_samples(256), training, torch.Generator().manual_seed(0))
    held_out = make_samples(128, seed=1)
    assert evaluate(CLASSIFICATION, model, held_out).score > 0.6
    found = taylor_importance(model, held_out, LABELS)
    for taylor, heads in zip(found[:2], (True, False), strict=True):
        exact = [
            ablation_importance(CLASSIFICATION, model, held_out, layer, heads=heads)
            for layer in range(3)
        ]
        assert spearmanr(taylor.flatten(), torch.cat(exact)).statistic > 0.8
    exact = channel_ablation(CLASSIFICATION, model, held_out)
    assert spearmanr(found.channels, exact).statistic > 0.7
