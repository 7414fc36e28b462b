"""The description of a Transformer family: the names of its parts, and what it does on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from acme_fleet.models.backbone.configuration import LanguageHead
from acme_fleet.models.backbone.parts import OwnParts

LM_HEAD = "lm_head"
"""The module of a decoder's language head, where that is not the table of words."""


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
        positions: the table of positions, if these are counted from the padding token's number on.
        first_norm: a norm that the first layer alone lacks, and a norm of the model that is as it.
        final_norm: a norm that the family's model applies to the pooled token alone.
        pooler: the module that makes one vector of all tokens; its parts have a layer's names.
        own: modules that an elastic model has in place of the family's.
        words: of decoders, the table of words, which may be the language head's matrix too.
    """

    layers: str
    query: str
    key: str
    value: str
    output: str
    neurons_in: tuple[str, ...]
    neurons_out: str
    neurons_key: str
    pooled: Literal["first", "last", "attention"]
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
    positions: str | None = None
    first_norm: tuple[str, str] | None = None
    final_norm: str | None = None
    pooler: str | None = None
    own: OwnParts | None = None
    words: str | None = None

    def stream_axis(self, name: str) -> int | None:
        """The axis of a tensor along the channels of the residual stream; none if it has none.

        All layers share these channels: embeddings and norms have one number for each of them, a
        matrix of a layer has them on the side where it reads or writes the stream.

        Args:
            name: of a parameter or buffer of a model of this family.
        """
        module, _, leaf = name.rpartition(".")
        in_layer = name.startswith(f"{self.layers}.")
        if in_layer or (self.pooler is not None and name.startswith(f"{self.pooler}.")):
            module = module.removeprefix(f"{self.layers}.") if in_layer else module
            module = module.partition(".")[2]
            if module in (*self.by_head, *self.head_tables):
                return None
            if module in (self.query, self.key, self.value, *self.neurons_in):
                return 1 if leaf == "weight" else None
            return 0  # of what writes to the stream, and of norms and scales
        if leaf in _NOT_OF_THE_STREAM or leaf.endswith("inv_freq"):
            return None
        return 0 if module == self.patches else -1

    def wrong_positions(self, config: PreTrainedConfig) -> str | None:
        """The reason why no position can be counted from the padding token; none if it can."""
        if self.positions is None:
            return None
        pad, count = config.pad_token_id, config.max_position_embeddings
        if pad is not None and 0 <= pad < count - 1:
            return None
        number = "null" if pad is None else pad
        kind = config.model_type.removeprefix("acme_")
        return (
            f"pad_token_id is {number}: a {kind} counts its {count} positions from that token's "
            f"number on"
        )

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


def language_head_of(config: PreTrainedConfig) -> LanguageHead | None:
    """The kind of an elastic model's language head; none where it has none."""
    return getattr(config, "language_head", None)
