"""δ(θ0, w, d): re-ordering, views and copies of sub-networks, and Hugging Face's own files."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, GPT2Config, PreTrainedModel

from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.elastic import (
    Architecture,
    architecture,
    as_elastic,
    extract,
    kept_layers,
    kept_units,
    reorder,
)
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.families import FAMILIES, Family, dimensions, family_of
from acme_fleet.models.features import Classifier, activations

MakeBackbone = Callable[..., PreTrainedModel]
MakeInputs = Callable[..., dict[str, Tensor]]
LAYERS = 3
UNEVEN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))
THIN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2), hidden=6)


@torch.no_grad()
def output(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden state of all tokens that are no padding."""
    last = model(**inputs).last_hidden_state
    mask = inputs.get("attention_mask", torch.ones(last.shape[:2]))
    return last[mask.bool()]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def masked(model: PreTrainedModel, arch: Architecture) -> PreTrainedModel:
    """The full model with dropped units' outputs set to zero and dropped layers taken out."""
    model = copy.deepcopy(model)
    family, sizes = family_of(model.config), dimensions(model.config)
    kept = [layers_of(model)[i] for i in arch.layers]
    for layer, heads, neurons in zip(kept, arch.heads, arch.neurons, strict=True):
        channels = heads * sizes.queries_per_head * sizes.head_dim
        for name, left in ((family.output, channels), (family.neurons_out, neurons)):
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight.data[:, left:] = 0
    model.set_submodule(family.layers, nn.ModuleList(kept))
    model.config.num_hidden_layers = len(kept)
    model.config.use_cache = False  # its places are numbered like the layers before
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in arch.layers]
    return model


# --- which layers and how many units ----------------------------------------------------------


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_kept_layers_are_evenly_spread_and_end_with_the_last(pair: tuple[int, int]) -> None:
    depth, layers = pair
    kept = kept_layers(depth, layers)
    assert len(kept) == depth
    assert kept[-1] == layers - 1
    gaps = [b - a for a, b in itertools.pairwise((-1, *kept))]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_kept_layers_by_hand() -> None:
    assert kept_layers(6, 12) == (1, 3, 5, 7, 9, 11)
    assert kept_layers(5, 12) == (2, 4, 7, 9, 11)
    assert kept_layers(1, 12) == (11,)
    assert kept_layers(12, 12) == tuple(range(12))


@pytest.mark.parametrize("depth", [0, 4, -1])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth {depth} is not in 1\.\.3"):
        kept_layers(depth, 3)


def test_kept_units_round_halves_up_and_keep_one() -> None:
    assert [kept_units(w, 10) for w in (0.01, 0.25, 0.34, 0.35, 1.0)] == [1, 3, 3, 4, 10]
    assert kept_units(0.5, 3) == 2


@pytest.mark.parametrize(
    ("layers", "heads", "neurons"),
    [
        ((), (), ()),
        ((0, 1), (1,), (1, 1)),
        ((1, 0), (1, 1), (1, 1)),
        ((0, 0), (1, 1), (1, 1)),
        ((0,), (0,), (1,)),
        ((0,), (1,), (0,)),
    ],
)
def test_impossible_architectures_cannot_be_built(
    layers: tuple[int, ...], heads: tuple[int, ...], neurons: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="layers"):
        Architecture(layers, heads, neurons)


def test_unknown_model_type_names_the_known_ones() -> None:
    with pytest.raises(
        FleetError, match="'gpt2' is not supported; known: vit, deit, dinov2, clip_vis"
    ):
        family_of(GPT2Config())


# --- full width and depth ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_full_width_and_depth_is_the_original(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    original, inputs = plain_backbone(family), make_inputs(family)
    elastic = as_elastic(original)
    assert torch.equal(output(elastic, inputs), output(original, inputs))
    with torch.no_grad():
        next(elastic.parameters()).add_(1)  # a copy: the original does not follow
    assert not torch.equal(output(elastic, inputs), output(original, inputs))


@pytest.mark.parametrize("family", ["vit", "bert", "llama"])
def test_a_checkpoint_of_hugging_face_is_taken_as_it_is(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    original, inputs = plain_backbone(family), make_inputs(family)
    original.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)  # with a pooler, where the family has one
    elastic = as_elastic(loaded.eval())
    sizes = dimensions(loaded.config)
    whole = extract(elastic, architecture(sizes, 1.0, sizes.layers))
    assert torch.equal(output(whole, inputs), output(original, inputs))


# --- re-ordering ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_reordering_leaves_the_function_unchanged(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    model, inputs = as_elastic(plain_backbone(family)), make_inputs(family)
    sizes, generator = dimensions(model.config), torch.Generator().manual_seed(0)
    heads = torch.rand(LAYERS, sizes.heads, generator=generator)
    neurons = torch.rand(LAYERS, sizes.neurons, generator=generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ordered = reorder(model, heads, neurons)
    torch.testing.assert_close(output(ordered, inputs), output(model, inputs), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
    # And yet everything has moved: each unit stands where its importance puts it.
    names: Family = FAMILIES[family]
    for layer, (old, new) in enumerate(zip(layers_of(model), layers_of(ordered), strict=True)):
        for name, importance in ((names.key, heads), (names.neurons_in[0], neurons)):
            count, parts = importance.shape[1], parts_of(f".{name}.", names)
            units = [
                of.get_submodule(name).weight.unflatten(0, (parts, count, -1)) for of in (old, new)
            ]
            order = sorted(range(count), key=lambda u: -float(importance[layer, u]))
            assert order != sorted(order)
            assert torch.equal(units[1], units[0][:, order])


@pytest.mark.parametrize("family", FAMILIES)
def test_axes_of_the_residual_stream_are_those_that_grow_with_the_hidden_size(
    family: str, plain_backbone: MakeBackbone
) -> None:
    """Against Hugging Face's own model of twice the hidden size."""
    names, narrow = FAMILIES[family], plain_backbone(family)
    config = copy.deepcopy(narrow.config)
    if names.head_size is None:
        config.head_dim = dimensions(config).head_dim
    config.hidden_size *= 2
    wide = AutoModel.from_config(config, **names.options)
    if names.own is not None:  # names are those of an elastic model
        narrow, wide = as_elastic(narrow), as_elastic(wide)
    stream, grown = set(), set()
    for name, value in [*narrow.named_parameters(), *narrow.named_buffers()]:
        other = wide.get_parameter_or_buffer(name)
        grown |= {(name, i) for i in range(value.ndim) if other.shape[i] > value.shape[i]}
        if (axis := names.stream_axis(name)) is not None:
            stream.add((name, axis % value.ndim))
    # Where they depend on it, heads grow too, and neurons whose number is a ratio.
    units = {(names.query, 0), (names.key, 0), (names.value, 0), (names.output, 1)}
    units |= {(names.neurons_out, 1), *((name, 0) for name in names.neurons_in)}
    for name, axis in grown - stream:
        if name.endswith("inv_freq"):  # of positions, one for each two channels of a head
            continue
        assert any(f".{unit}." in name and axis == i for unit, i in units), name
    assert stream <= grown


@pytest.mark.parametrize("family", FAMILIES)
def test_reordering_channels_leaves_the_logits_unchanged(
    family: str, make_classifier: Callable[..., Classifier], make_inputs: MakeInputs
) -> None:
    """For any order, the hidden states are those of before, permuted, and so is what reads them."""
    model, inputs = make_classifier(family, LAYERS), make_inputs(family)
    sizes, generator = dimensions(model.backbone.config), torch.Generator().manual_seed(0)
    heads = torch.rand(LAYERS, sizes.heads, generator=generator)
    neurons = torch.rand(LAYERS, sizes.neurons, generator=generator)
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else ...
    double = nn.Linear(2 * sizes.hidden, 4)

    @torch.no_grad()
    @settings(max_examples=8)
    @given(st.permutations(range(sizes.hidden)), st.booleans())
    def check(order: list[int], first_mean: bool) -> None:
        before = Classifier(model.backbone, double if first_mean else model.head)
        before.backbone.config.pooling = "first_mean" if first_mean else FAMILIES[family].pooled
        channels = torch.empty(sizes.hidden)
        channels[order] = torch.arange(sizes.hidden, 0, -1.0)
        after = reorder_classifier(before, heads, neurons, channels)
        old, new = (activations(m.backbone, inputs) for m in (before, after))
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(after(**inputs), before(**inputs), **close)
        torch.testing.assert_close(new.embeddings, old.embeddings[..., order], **close)
        torch.testing.assert_close(new.final[real], old.final[real][..., order], **close)

    check()


# --- sub-networks -----------------------------------------------------------------------------


def test_a_hidden_size_of_nothing_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="at least one channel"):
        Architecture((0,), (1,), (1,), hidden=0)


@st.composite
def uneven(draw: st.DrawFn, heads: int, neurons: int, hidden: list[int]) -> Architecture:
    layers = draw(st.sets(st.integers(0, LAYERS - 1), min_size=1).map(sorted))
    some = {"min_size": len(layers), "max_size": len(layers)}
    return Architecture(
        layers=tuple(layers),
        heads=tuple(draw(st.lists(st.integers(1, heads), **some))),
        neurons=tuple(draw(st.lists(st.integers(1, neurons), **some))),
        hidden=draw(st.none() | st.sampled_from(hidden)),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_extracted_equals_the_view_and_the_masked_model(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    """For any choice of layers, heads and neurons, different in every layer, and any hidden size.

    Norms of fewer channels have other means, so that no mask is a cut hidden size.
    """
    model, inputs = as_elastic(plain_backbone(family)), make_inputs(family)
    sizes = dimensions(model.config)
    whole = ElasticClassifier(Classifier(model, nn.Linear(sizes.hidden, 2)))
    mask = inputs.get("attention_mask")

    @settings(max_examples=10)
    @given(uneven(sizes.heads, sizes.neurons, list(range(1, sizes.hidden))))
    def check(arch: Architecture) -> None:
        small = extract(model, arch)
        if arch.hidden is None:
            expected = output(masked(model, arch), inputs)
            torch.testing.assert_close(output(small, inputs), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            run = whole.run(arch, inputs)
            alone = Classifier(small, whole.extract_head(arch))(**inputs)
            cut = activations(small, inputs)
        real = ... if mask is None else mask.bool()
        view = run.activations.final[real]
        torch.testing.assert_close(view, cut.final[real], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run.logits, alone, rtol=1e-5, atol=1e-6)

    check()


def parts_of(name: str, family: Family) -> int:
    """Parts that one Linear has behind each other: queries, keys and values, or an MLP's two."""
    linears = (family.query, family.key, family.value, *family.neurons_in)
    return max(1, sum(f".{linear}." in name for linear in linears))


def first_of_each_part(value: Tensor, shape: torch.Size, parts: int) -> Tensor:
    return torch.cat(
        [part[: shape[0] // parts][(..., *map(slice, shape[1:]))] for part in value.chunk(parts)]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_in_proportion_is_hugging_faces_own_model_of_these_sizes(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    """Heads and hidden size are cut by one share, as a family may divide one by the other."""
    model, inputs, names = plain_backbone(family), make_inputs(family), FAMILIES[family]
    sizes, config = dimensions(model.config), copy.deepcopy(model.config)
    heads = sizes.heads * 2 // 3
    config.num_attention_heads = heads * sizes.queries_per_head
    config.hidden_size = sizes.head_dim * heads
    if sizes.queries_per_head > 1:  # these take a head's size as it is told
        config.num_key_value_heads, config.head_dim, config.hidden_size = heads, sizes.head_dim, 12
    neurons = dimensions(config).neurons if names.neurons_key == "mlp_ratio" else 5
    if names.neurons_key != "mlp_ratio":
        setattr(config, names.neurons_key, neurons)
    small = AutoModel.from_config(config, **names.options).eval()
    if names.scaled_words is not None:  # by √hidden size; a cut keeps the factor of before
        small.get_submodule(names.scaled_words).embed_scale.fill_(sizes.hidden**0.5)
    small.load_state_dict(
        {
            name: first_of_each_part(value, small.state_dict()[name].shape, parts_of(name, names))
            for name, value in model.state_dict().items()
        }
    )
    every = {"layers": tuple(range(LAYERS)), "hidden": config.hidden_size}
    arch = Architecture(heads=(heads,) * LAYERS, neurons=(neurons,) * LAYERS, **every)
    cut = extract(as_elastic(model), arch)
    assert torch.equal(output(cut, inputs), output(small, inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_extracted_is_physically_small(family: str, plain_backbone: MakeBackbone) -> None:
    """Ordinary Linears of the kept sizes, and not one number more."""
    model, names = as_elastic(plain_backbone(family)), FAMILIES[family]
    sizes, small = dimensions(model.config), extract(model, UNEVEN)
    assert len(layers_of(small)) == 2
    for layer, heads, neurons in zip(layers_of(small), UNEVEN.heads, UNEVEN.neurons, strict=True):
        keys = heads * sizes.head_dim
        queries = keys * sizes.queries_per_head
        wanted: dict[str, int] = defaultdict(int)
        wanted[names.query] += queries
        for name, rows in ((names.key, keys), (names.value, keys)):
            wanted[name] += rows
        for name in names.neurons_in:
            wanted[name] += neurons
        for name, rows in wanted.items():
            assert layer.get_submodule(name).weight.shape == (rows, sizes.hidden)
        assert layer.get_submodule(names.neurons_out).weight.shape == (sizes.hidden, neurons)
        assert layer.get_submodule(names.output).weight.shape == (sizes.hidden, queries)
        assert type(layer.get_submodule(names.output)) is nn.Linear
    sliced = {name: v.untyped_storage().nbytes() for name, v in small.state_dict().items()}
    assert sliced == {name: v.nbytes for name, v in small.state_dict().items()}


def test_grouped_queries_go_with_their_keys(plain_backbone: MakeBackbone) -> None:
    """Width ⅔ of three groups keeps two groups: two key heads and their four query heads."""
    model = as_elastic(plain_backbone("llama"))
    sizes = dimensions(model.config)
    assert (sizes.heads, sizes.queries_per_head, sizes.head_dim) == (3, 2, 4)
    small = extract(model, architecture(sizes, 2 / 3, 1))
    attention = layers_of(small)[0].get_submodule("self_attn")
    old = layers_of(model)[2].get_submodule("self_attn")
    for name, rows in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        weight = attention.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert torch.equal(weight, old.get_submodule(name).weight[:rows])


def test_layers_keep_their_kind(plain_backbone: MakeBackbone) -> None:
    """Qwen's layers differ: those with a sliding window stay so, wherever they move to."""
    model = as_elastic(plain_backbone("qwen2"))
    assert model.config.layer_types == ["full_attention", *["sliding_attention"] * 2]
    assert extract(model, UNEVEN).config.layer_types == ["full_attention", "sliding_attention"]
    last = Architecture((2,), (1,), (1,))
    assert extract(model, last).config.layer_types == ["sliding_attention"]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_kept_part_of_the_shared_weights_only(
    family: str, plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    model, names = as_elastic(plain_backbone(family)), FAMILIES[family]
    sizes = dimensions(model.config)
    whole = ElasticClassifier(Classifier(model, nn.Linear(sizes.hidden, 2)))
    whole.run(UNEVEN, make_inputs(family)).activations.final.square().sum().backward()
    dropped, kept = layers_of(model)[1], layers_of(model)[2]
    assert all(parameter.grad is None for parameter in dropped.parameters())
    gradient = kept.get_submodule(names.neurons_out).weight.grad  # 2 neurons of the third layer
    assert isinstance(gradient, Tensor)
    assert gradient[:, :2].any()
    assert not gradient[:, 2:].any()
    gradient = layers_of(model)[0].get_submodule(names.value).weight.grad  # one head of the first
    assert isinstance(gradient, Tensor)
    gradient = gradient.chunk(parts_of(f".{names.value}.", names))[-1]
    assert gradient[: sizes.head_dim].any()
    assert not gradient[sizes.head_dim :].any()


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [UNEVEN, THIN])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_pretrained_round_trip_bit_for_bit(
    family: str,
    arch: Architecture,
    plain_backbone: MakeBackbone,
    make_inputs: MakeInputs,
    tmp_path: Path,
) -> None:
    small, inputs = extract(as_elastic(plain_backbone(family)), arch), make_inputs(family)
    small.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == f"acme_{family}"
    assert (config.heads_per_layer, config.neurons_per_layer) == ([1, 3], [7, 2])
    assert config.hidden_size == small.config.hidden_size == (arch.hidden or config.hidden_size)
    loaded: Any = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(small)
    state = loaded.state_dict()
    assert state.keys() == small.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())
    assert torch.equal(output(loaded.eval(), inputs), output(small, inputs))
    # The file holds the small model and nothing else.
    stored = sum(value.numel() for value in load_file(tmp_path / "model.safetensors").values())
    assert stored == sum(parameter.numel() for parameter in small.parameters())
