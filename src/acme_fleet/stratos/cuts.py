"""Sizes of language models from their shape, and of ACME's cuts of them, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator
from transformers import CONFIG_MAPPING, PreTrainedConfig

from acme_fleet.config.base import Settings
from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import parameter_count, shapes_of, stored_size, stored_tensors
from acme_fleet.cost.variant import Variant
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.elastic import Architecture, architecture, build, elastic_config
from acme_fleet.models.families import dimensions
from acme_fleet.stratos.predictors.size import ModelSize

Count = Annotated[int, Field(ge=1, le=2**31)]


class Shape(Settings):
    """Sizes of a decoder, with the keys of its ``config.json`` beside them."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"]
    """``model_type``."""
    layers: Annotated[int, Field(ge=1, le=512)]
    """``num_hidden_layers``."""
    hidden: Count
    """``hidden_size``."""
    heads: Annotated[int, Field(ge=1, le=1024)]
    """``num_attention_heads``."""
    key_heads: Annotated[int, Field(ge=1, le=1024)]
    """``num_key_value_heads``; equal to ``heads`` where the file has none."""
    head_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    """``head_dim``; none is ``hidden`` ÷ ``heads``."""
    neurons: Count
    """``intermediate_size``."""
    vocabulary: Count
    """``vocab_size``."""
    context: Count
    """``max_position_embeddings``."""
    tied: bool
    """``tie_word_embeddings``: the output shares the word table."""
    parameters: Annotated[int, Field(ge=1, le=10**13)] | None = None
    """Parameters by the model's card; if given they must be those of the shape."""

    @model_validator(mode="after")
    def _divisible(self) -> Shape:
        if self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} is no multiple of key_heads {self.key_heads}")
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is no multiple of heads {self.heads}")
        return self

    def config(self) -> PreTrainedConfig:
        """The configuration that transformers knows."""
        content = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_dim or self.hidden // self.heads,
            "intermediate_size": self.neurons,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
        }
        return CONFIG_MAPPING[self.family].from_dict(content)


def model_size(shape: Shape, name: str) -> ModelSize:
    """Sizes of a whole model; its parameters are counted, nothing is allocated.

    Raises:
        FleetError: if the table says another number of parameters.
    """
    size, _ = _sized(shape, shape.config(), Variant.whole(shape.layers))
    if shape.parameters is not None and shape.parameters != size.parameters:
        raise FleetError(
            f"{name}: shape.parameters: {shape.parameters:,} are not the {size.parameters:,} of "
            f"its layers, hidden, heads, neurons and vocabulary; correct them"
        )
    return size


def cut_sizes(
    shape: Shape, name: str, grid: Iterable[tuple[float, float, int]], precision: Precision
) -> Iterator[tuple[Variant, ModelSize, int]]:
    """Each cut δ(θ0, w, d) of a model with its sizes and the exact bytes of its file.

    Args:
        shape, name: of the model.
        grid: width, share of the hidden size and depth of each cut.
        precision: of the weights as served.

    Raises:
        FleetError: if a depth exceeds the model's layers.
    """
    config = shape.config()
    for width, hidden, depth in grid:
        if depth > shape.layers:
            raise FleetError(f"cuts: depths: {name} has {shape.layers} layers, not {depth}")
        variant = Variant(width, depth, hidden, precision)
        yield (variant, *_sized(shape, config, variant))


def _sized(shape: Shape, config: PreTrainedConfig, variant: Variant) -> tuple[ModelSize, int]:
    """Sizes, and bytes of the language model's ``model.safetensors``."""
    sizes = dimensions(config)
    arch: Architecture = architecture(sizes, variant.width, variant.depth, variant.hidden)
    hidden = arch.hidden or sizes.hidden
    tensors = shapes_of(build(elastic_config(config, arch)), "model.")
    table = shape.vocabulary * hidden
    if not shape.tied:
        tensors["lm_head.weight"] = (shape.vocabulary, hidden)
    parameters = parameter_count(tensors)
    size = ModelSize(
        parameters=parameters,
        products=parameters if shape.tied else parameters - table,
        layers=variant.depth,
        hidden=hidden,
        keys=arch.heads[0] * sizes.head_dim,
        neurons=arch.neurons[0],
        vocabulary=shape.vocabulary,
        context=shape.context,
    )
    return size, stored_size(stored_tensors(tensors, variant.precision))
