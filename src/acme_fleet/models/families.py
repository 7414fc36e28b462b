"""Transformer families: the modules that hold their heads, neurons, layers and tokens.

A family is one entry of :data:`FAMILIES`. An elastic model is an ordinary subclass of the
family's Hugging Face model whose configuration says how many heads and neurons *each* layer has;
it registers with ``AutoConfig`` and ``AutoModel``, so ``from_pretrained`` loads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

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
from acme_fleet.models.backbone.configuration import accepted
from acme_fleet.models.backbone.precision import use_precision
from acme_fleet.outside import one_line


@dataclass(frozen=True)
class Family:
    """Names of the parts of a model, as in memory (names on disk may differ).

    Names that are equal are one Linear, whose outputs are these parts one behind the other.

    Attributes:
        layers: the list of Transformer layers.
        query, key, value, output: the attention's Linears, relative to a layer.
        neurons_in: Linears whose outputs are the MLP's neurons (two where the MLP is gated).
        neurons_out: the Linear that the neurons enter.
        neurons_key: the configuration's name for the number of MLP neurons, or for its ratio to
            the hidden size.
        pooled: how the whole input becomes one vector, where nothing says how to pool.
        prefix_tokens: tokens before the patches or words that are no part of the grid.
        grid: whether the tokens form an image grid or a sequence.
        options: what the model's constructor takes beside the configuration.
        patches: the convolution that makes a vector of each patch, of images only.
        head_size, head_scale: the attention's attributes for the channels of a head and for the
            factor on its scores, where it takes them from the hidden size, which must be a multiple
            of the heads, and reads no ``head_dim``.
        by_head: modules of a layer that work on the channels of one head, the same for all heads.
        head_tables: embeddings of a layer with one column for each query head.
        resampled: whether the position table is made for the image size of the data, as the
            family's own models do with every image.
        scaled_words: the table of words, if its vectors are multiplied by √hidden size.
    """

    layers: str
    query: str
    key: str
    value: str
    output: str
    neurons_in: tuple[str, ...]
    neurons_out: str
    neurons_key: str
    pooled: Literal["first", "last"]
    prefix_tokens: int
    grid: Literal["image", "sequence"]
    options: dict[str, Any]
    patches: str | None = None
    head_size: str | None = None
    head_scale: str | None = None
    by_head: tuple[str, ...] = ()
    head_tables: tuple[str, ...] = ()
    resampled: bool = False
    scaled_words: str | None = None

    def stream_axis(self, name: str) -> int | None:
        """The axis of a tensor along the channels of the residual stream; none if it has none.

        All layers share these channels: embeddings and norms have one number for each of them, a
        matrix of a layer has them on the side where it reads or writes the stream.

        Args:
            name: of a parameter or buffer of a model of this family.
        """
        module, _, leaf = name.rpartition(".")
        if name.startswith(f"{self.layers}."):
            module = module.removeprefix(f"{self.layers}.").partition(".")[2]
            if module in (*self.by_head, *self.head_tables):
                return None
            if module in (self.query, self.key, self.value, *self.neurons_in):
                return 1 if leaf == "weight" else None
            return 0  # of what writes to the stream, and of norms and scales
        if leaf in _NOT_OF_THE_STREAM or leaf.endswith("inv_freq"):
            return None
        return 0 if module == self.patches else -1

    def outputs(self, sizes: Dimensions, heads: int, neurons: int) -> dict[str, list[int]]:
        """Outputs of a layer's Linears that read the stream, part by part, by name."""
        keys = heads * sizes.head_dim
        parts = [(self.query, keys * sizes.queries_per_head), (self.key, keys), (self.value, keys)]
        found: dict[str, list[int]] = {}
        for name, size in (*parts, *((name, neurons) for name in self.neurons_in)):
            found.setdefault(name, []).append(size)
        return found

    def inputs(self, sizes: Dimensions, heads: int, neurons: int) -> dict[str, int]:
        """Columns of a layer's matrices that heads or neurons enter, by name."""
        queries = heads * sizes.queries_per_head
        tables = dict.fromkeys(self.head_tables, queries)
        return {self.output: queries * sizes.head_dim, self.neurons_out: neurons, **tables}


_NOT_OF_THE_STREAM = ("position_ids", "token_type_ids", "embed_scale")
"""Buffers that are no vectors of the hidden size, beside the frequencies of rotary positions."""


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
    "bert": _BERT,
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


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a reference model, read from its configuration.

    A *head* here is the unit that is kept or dropped: for grouped-query attention one key/value
    head with all query heads that share it (``queries_per_head``). The channels of the residual
    stream are ``hidden``; a cut model has fewer of them than its heads have together.
    """

    layers: int
    heads: int
    queries_per_head: int
    head_dim: int
    neurons: int
    hidden: int


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


def check_complete(folder: str, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model that transformers filled up with random numbers, or loaded in part.

    Args:
        folder: where it was loaded from.
        info: what transformers tells of the loading.

    Raises:
        FleetError: naming the first tensors that do not fit the configuration.
    """
    kinds = ("missing", "lacks"), ("unexpected", "also has"), ("mismatched", "has another shape of")
    for kind, what in kinds:
        if keys := info[f"{kind}_keys"]:
            names = sorted(key if isinstance(key, str) else key[0] for key in keys)
            raise FleetError(
                f"cannot use {folder}: its file disagrees with its configuration, it {what} "
                f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
            )


# --- elastic classes --------------------------------------------------------------------------

_PREFIX = "acme_"


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
    if family.scaled_words is not None:
        words = cast("Any", model.get_submodule(family.scaled_words))
        words.scalar_embed_scale = config.embed_scale
        words.embed_scale.fill_(config.embed_scale)


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
            **others: Any,
        ) -> None:
            family = FAMILIES[config_class.model_type]
            self.heads_per_layer = list(heads_per_layer)
            self.neurons_per_layer = list(neurons_per_layer)
            self.precision = precision
            self.pooling = pooling or family.pooled
            name = config_class.attribute_map.get("num_attention_heads", "num_attention_heads")
            told, heads = others.get("head_dim") is not None, others.get(name)
            super().__init__(**{**others, name: 1} if told and heads else others)
            if told and heads:  # transformers has checked the sizes as those of one head
                setattr(self, name, heads)
            if family.scaled_words is not None:
                self.embed_scale = embed_scale or self.hidden_size**0.5

        def validate(self) -> None:
            with _one_head(self):
                super().validate()

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
            _narrow(self)
            use_precision(self, config.precision)

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
