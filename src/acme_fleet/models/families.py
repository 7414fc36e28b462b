"""Transformer families: the modules that hold their heads, neurons, layers and tokens.

A family is one entry of :data:`FAMILIES`. An elastic model is an ordinary subclass of the
family's Hugging Face model whose configuration says how many heads and neurons *each* layer has;
it registers with ``AutoConfig`` and ``AutoModel``, so ``from_pretrained`` loads it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from acme_fleet.config.backbone import Pooling
from acme_fleet.config.devices import Precision
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.configuration import LanguageHead, accepted
from acme_fleet.models.backbone.loaded import check_complete
from acme_fleet.models.backbone.parts import ATTENTION_POOLING, BIASED_ATTENTION
from acme_fleet.models.backbone.precision import use_precision
from acme_fleet.models.family import Dimensions, Family, language_head_of
from acme_fleet.outside import one_line


def _image(prefix_tokens: int) -> Family:
    return Family(
        layers="layers",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        output="attention.o_proj",
        neurons_in=("mlp.fc1",),
        neurons_out="mlp.fc2",
        neurons_key="intermediate_size",
        pooled="first",
        prefix_tokens=prefix_tokens,
        grid="image",
        options={"add_pooling_layer": False},
        patches="embeddings.patch_embeddings.projection",
    )


_BERT = Family(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    neurons_in=("intermediate.dense",),
    neurons_out="output.dense",
    neurons_key="intermediate_size",
    pooled="first",
    prefix_tokens=1,
    grid="sequence",
    options={"add_pooling_layer": False},
    head_size="attention_head_size",
    head_scale="scaling",
)
_ROBERTA = replace(_BERT, positions="embeddings.position_embeddings")
_CLIP = replace(
    _image(prefix_tokens=1),
    layers="encoder.layers",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    options={},
    patches="embeddings.patch_embedding",
    head_size="head_dim",
    head_scale="scale",
)
_DECODER = Family(
    layers="layers",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    neurons_in=("mlp.gate_proj", "mlp.up_proj"),
    neurons_out="mlp.down_proj",
    neurons_key="intermediate_size",
    pooled="last",
    prefix_tokens=0,
    grid="sequence",
    options={},
    words="embed_tokens",
)
_NORMED_DECODER = replace(_DECODER, by_head=("self_attn.q_norm", "self_attn.k_norm"))

FAMILIES: dict[str, Family] = {
    "vit": _image(prefix_tokens=1),
    "deit": _image(prefix_tokens=2),
    "dinov2": replace(
        _image(prefix_tokens=1),
        layers="encoder.layer",
        neurons_key="mlp_ratio",
        options={},
        resampled=True,
    ),
    "clip_vision_model": replace(_CLIP, prefix_tokens=1, final_norm="post_layernorm"),
    "siglip_vision_model": replace(
        _CLIP, prefix_tokens=0, pooled="attention", pooler="head", own=ATTENTION_POOLING
    ),
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": replace(
        _ROBERTA,
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        head_scale=None,
        head_tables=("attention.attn.relative_attention_bias",),
        own=BIASED_ATTENTION,
    ),
    "modernbert": replace(
        _BERT,
        layers="layers",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        output="attn.Wo",
        neurons_in=("mlp.Wi", "mlp.Wi"),
        neurons_out="mlp.Wo",
        options={},
        head_size="head_dim",
        head_scale=None,
        first_norm=("attn_norm", "final_norm"),
    ),
    "distilbert": replace(
        _BERT,
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        neurons_in=("ffn.lin1",),
        neurons_out="ffn.lin2",
        neurons_key="hidden_dim",
        options={},
    ),
    "llama": _DECODER,
    "qwen2": _DECODER,
    "mistral": _DECODER,
    "smollm3": _DECODER,
    "qwen3": _NORMED_DECODER,
    "gemma3_text": replace(_NORMED_DECODER, scaled_words="embed_tokens"),
}


def dimensions(config: PreTrainedConfig) -> Dimensions:
    """Read the sizes of an (unsliced) model of a known family."""
    queries, key = config.num_attention_heads, family_of(config).neurons_key
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // queries
    heads = getattr(config, "num_key_value_heads", None) or queries
    return Dimensions(
        layers=config.num_hidden_layers,
        heads=heads,
        queries_per_head=queries // heads,
        head_dim=head_dim,
        neurons=getattr(config, key) * (queries * head_dim if key == "mlp_ratio" else 1),
        hidden=config.hidden_size,
    )


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration, elastic or not.

    Raises:
        FleetError: if the model type is not in :data:`FAMILIES`; the message lists those known.
    """
    return FAMILIES[check_known(config.model_type)]


def own_pooling(config: PreTrainedConfig) -> Pooling:
    """The family's way to pool, or the mean where a model lacks the module for it."""
    family = family_of(config)
    return family.pooled if family.pooler is None or config.vision_use_head else "mean"


def most_tokens(config: PreTrainedConfig) -> int:
    """The tokens of the longest text that a model takes."""
    if family_of(config).positions is None:
        return config.max_position_embeddings
    return config.max_position_embeddings - (config.pad_token_id or 0) - 1


def check_known(model_type: str, place: str = "") -> str:
    """The family's name of a model type, elastic or not; ``place`` begins the message.

    Raises:
        FleetError: if it is not in :data:`FAMILIES`; the message lists those known.
    """
    name = model_type.removeprefix(_PREFIX)
    if name not in FAMILIES:
        unknown = f"model type {one_line(model_type, 60)!r} is not supported"
        raise FleetError(f"{f'{place}: ' if place else ''}{unknown}; known: {', '.join(FAMILIES)}")
    return name


def is_elastic(config: PreTrainedConfig) -> bool:
    """True for a configuration of ours, whose layers may differ in heads and neurons."""
    return config.model_type.startswith(_PREFIX)


# --- elastic classes --------------------------------------------------------------------------

_PREFIX = "acme_"
_UNREAD_TOKENS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def _resized(module: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A Linear of these sizes; of an embedding the rows stay, and ``inputs`` are its columns."""
    assert isinstance(module, nn.Linear | nn.Embedding)
    place = {"device": module.weight.device, "dtype": module.weight.dtype}
    if isinstance(module, nn.Embedding):
        return nn.Embedding(module.num_embeddings, inputs, **place)
    return nn.Linear(inputs, outputs, bias=module.bias is not None, **place)


@contextmanager
def _one_head(config: PreTrainedConfig) -> Iterator[None]:
    """A configuration whose hidden size is a multiple of its heads, as transformers wants it.

    Where the hidden size is cut, ``head_dim`` says how large a head is.
    """
    heads = config.num_attention_heads
    if getattr(config, "head_dim", None) is not None:
        config.num_attention_heads = 1
    try:
        yield
    finally:
        config.num_attention_heads = heads


def _narrow(model: PreTrainedModel) -> None:
    """Replace what heads or neurons enter or leave by modules of the sizes that each layer has."""
    config, family = model.config, family_of(model.config)
    sizes = dimensions(config)
    layers = model.get_submodule(family.layers)
    for layer, heads, neurons in zip(
        layers.children(), config.heads_per_layer, config.neurons_per_layer, strict=True
    ):
        for name, parts in family.outputs(sizes, heads, neurons).items():
            layer.set_submodule(name, _resized(layer.get_submodule(name), sizes.hidden, sum(parts)))
        for name, inputs in family.inputs(sizes, heads, neurons).items():
            layer.set_submodule(name, _resized(layer.get_submodule(name), inputs, sizes.hidden))
        attention = cast("Any", layer.get_submodule(family.query.rpartition(".")[0]))
        if family.head_size is not None:
            setattr(attention, family.head_size, sizes.head_dim)
        if family.head_scale is not None:
            setattr(attention, family.head_scale, sizes.head_dim**-0.5)


def _complete(model: PreTrainedModel) -> None:
    """Set a cut model's numbers that its family's own takes from the hidden size, or fixes."""
    config, family = model.config, family_of(model.config)
    if family.scaled_words is not None:
        words = cast("Any", model.get_submodule(family.scaled_words))
        words.scalar_embed_scale = config.embed_scale
        words.embed_scale.fill_(config.embed_scale)
    if family.positions is not None:
        embeddings = cast("Any", model.get_submodule(family.positions.rpartition(".")[0]))
        embeddings.padding_idx = config.pad_token_id
    if family.first_norm is not None and config.first_layer_norm:
        name, like = family.first_norm
        for layer in list(model.get_submodule(family.layers).children())[:1]:
            layer.set_submodule(name, copy.deepcopy(model.get_submodule(like)))


def _elastic_classes(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Subclasses whose layers may differ in heads and neurons, registered with ``Auto…``.

    Where the hidden size is cut, ``head_dim`` says how large a head was before.
    """

    class ElasticConfig(config_class):
        model_type = _PREFIX + config_class.model_type

        def __init__(
            self,
            heads_per_layer: Sequence[int] = (),
            neurons_per_layer: Sequence[int] = (),
            pooling: Pooling | None = None,
            precision: Precision = "float32",
            embed_scale: float | None = None,
            first_layer_norm: bool = False,
            language_head: LanguageHead | None = None,
            **others: Any,
        ) -> None:
            family = FAMILIES[config_class.model_type]
            self.heads_per_layer = list(heads_per_layer)
            self.neurons_per_layer = list(neurons_per_layer)
            self.precision = precision
            if language_head is not None:  # no key of other models' configurations
                self.language_head = language_head
            # No backbone reads the numbers of these tokens; defaults are of another vocabulary.
            unread = (f.name for f in dataclasses.fields(config_class) if f.name in _UNREAD_TOKENS)
            others = {**dict.fromkeys(unread), **others}
            name = config_class.attribute_map.get("num_attention_heads", "num_attention_heads")
            told, heads = others.get("head_dim") is not None, others.get(name)
            super().__init__(**{**others, name: 1} if told and heads else others)
            if told and heads:  # transformers has checked the sizes as those of one head
                setattr(self, name, heads)
            if family.scaled_words is not None:
                self.embed_scale = embed_scale or self.hidden_size**0.5
            if family.first_norm is not None:
                self.first_layer_norm = first_layer_norm
            self.pooling = pooling or own_pooling(self)

        def validate(self) -> None:
            with _one_head(self):
                cast("Any", super()).validate()

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **others: Any) -> Any:
            """From what may be anybody's; see :mod:`acme_fleet.models.backbone.configuration`."""
            content = accepted(config_class.model_type, config_dict, "the configuration")
            return super().from_dict(content, **others)

    class ElasticModel(model_class):
        config_class = ElasticConfig

        def __init__(self, config: PreTrainedConfig) -> None:
            family = family_of(config)
            with nullcontext() if family.head_size is None else _one_head(config):
                super().__init__(config, **family.options)
            if family.own is not None:
                family.own.put(self, dimensions(config).head_dim)
            if language_head_of(config) == "own":
                self.lm_head: nn.Module = nn.Linear(
                    config.hidden_size, config.vocab_size, bias=False
                )
            _narrow(self)
            _complete(self)
            use_precision(self, config.precision, groups=family.words is not None)

        @classmethod
        def from_pretrained(cls, folder: Any, *others: Any, **options: Any) -> Any:
            """As in transformers, but a tensor that is missing or too many is an error."""
            told = options.pop("output_loading_info", False)
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = cast("Any", super().from_pretrained(folder, *others, **options))
            check_complete(str(folder), info)
            return (model, info) if told else model

    for new, old in ((ElasticConfig, config_class), (ElasticModel, model_class)):
        new.__name__ = new.__qualname__ = f"Elastic{old.__name__}"
        new.__doc__ = f"{old.__name__} whose layers may differ in heads and neurons."
    AutoConfig.register(ElasticConfig.model_type, ElasticConfig)
    AutoModel.register(ElasticConfig, ElasticModel)
    return ElasticConfig, ElasticModel


ELASTIC: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {}


def add_family(name: str, family: Family) -> None:
    """Make models of a Hugging Face model type elastic, from here on in this process.

    Raises:
        KeyError: if transformers has no model of this type.
    """
    config_class = CONFIG_MAPPING[name]
    model_class = cast(Any, MODEL_MAPPING)[config_class]
    FAMILIES[name] = family
    ELASTIC[name] = _elastic_classes(config_class, model_class)


for _name, _family in list(FAMILIES.items()):
    add_family(_name, _family)
