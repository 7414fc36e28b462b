"""Transformer families: the modules that hold their heads, neurons, layers and tokens.

A family is one entry of :data:`FAMILIES`. An elastic model is an ordinary subclass of the
family's Hugging Face model whose configuration says how many heads and neurons *each* layer has;
it registers with ``AutoConfig`` and ``AutoModel``, so ``from_pretrained`` loads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.configuration import accepted
from acme_fleet.outside import one_line


@dataclass(frozen=True)
class Family:
    """Names of the parts of a model, as in memory (names on disk may differ).

    Attributes:
        layers: the list of Transformer layers.
        query, key, value, output: the attention's Linears, relative to a layer.
        neurons_in: Linears whose outputs are the MLP's neurons (two where the MLP is gated).
        neurons_out: the Linear that the neurons enter.
        neurons_key: the configuration's name for the number of MLP neurons, or for its ratio to
            the hidden size.
        pooled: which token stands for the whole input, where nothing says how to pool.
        prefix_tokens: tokens before the patches or words that are no part of the grid.
        grid: whether the tokens form an image grid or a sequence.
        options: what the model's constructor takes beside the configuration.
        resampled: whether the position table is made for the image size of the data, as the
            family's own models do with every image.
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
    resampled: bool = False


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
    "bert": Family(
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
    ),
    "distilbert": Family(
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        neurons_in=("ffn.lin1",),
        neurons_out="ffn.lin2",
        neurons_key="hidden_dim",
        pooled="first",
        prefix_tokens=1,
        grid="sequence",
        options={},
    ),
    "llama": _DECODER,
    "qwen2": _DECODER,
}


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a reference model, read from its configuration.

    A *head* here is the unit that is kept or dropped: for grouped-query attention one key/value
    head with all query heads that share it (``queries_per_head``).
    """

    layers: int
    heads: int
    queries_per_head: int
    head_dim: int
    neurons: int
    hidden: int


def dimensions(config: PreTrainedConfig) -> Dimensions:
    """Read the sizes of an (unsliced) model of a known family."""
    queries = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    return Dimensions(
        layers=config.num_hidden_layers,
        heads=heads,
        queries_per_head=queries // heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // queries,
        neurons=_neurons(config, family_of(config).neurons_key),
        hidden=config.hidden_size,
    )


def _neurons(config: PreTrainedConfig, key: str) -> int:
    return getattr(config, key) * (config.hidden_size if key == "mlp_ratio" else 1)


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


def _resize(linear: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(
        inputs,
        outputs,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )


def _narrow(model: PreTrainedModel) -> None:
    """Replace each layer's Linears by ones of the sizes that the configuration lists."""
    config, family = model.config, family_of(model.config)
    sizes = dimensions(config)
    layers = model.get_submodule(family.layers)
    for layer, heads, neurons in zip(
        layers.children(), config.heads_per_layer, config.neurons_per_layer, strict=True
    ):
        width = heads * sizes.head_dim
        queries = width * sizes.queries_per_head
        new_sizes = {
            family.query: (sizes.hidden, queries),
            family.key: (sizes.hidden, width),
            family.value: (sizes.hidden, width),
            family.output: (queries, sizes.hidden),
            **dict.fromkeys(family.neurons_in, (sizes.hidden, neurons)),
            family.neurons_out: (neurons, sizes.hidden),
        }
        for name, (inputs, outputs) in new_sizes.items():
            old = layer.get_submodule(name)
            assert isinstance(old, nn.Linear)
            layer.set_submodule(name, _resize(old, inputs, outputs))


def _elastic_classes(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Subclasses whose layers may differ in heads and neurons, registered with ``Auto…``."""

    class ElasticConfig(config_class):
        model_type = _PREFIX + config_class.model_type

        def __init__(
            self,
            heads_per_layer: Sequence[int] = (),
            neurons_per_layer: Sequence[int] = (),
            pooling: Pooling | None = None,
            **others: Any,
        ) -> None:
            self.heads_per_layer = list(heads_per_layer)
            self.neurons_per_layer = list(neurons_per_layer)
            self.pooling = pooling or FAMILIES[config_class.model_type].pooled
            super().__init__(**others)

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **others: Any) -> Any:
            """From what may be anybody's; see :mod:`acme_fleet.models.backbone.configuration`."""
            content = accepted(config_class.model_type, config_dict, "the configuration")
            return super().from_dict(content, **others)

    class ElasticModel(model_class):
        config_class = ElasticConfig

        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config, **FAMILIES[config.model_type.removeprefix(_PREFIX)].options)
            _narrow(self)

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
