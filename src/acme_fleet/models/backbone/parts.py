"""Modules of elastic models in place of their families' own, which heads or channels cannot leave.

Each computes what the family's module does, from the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN


@dataclass(frozen=True)
class OwnParts:
    """Differences between an elastic model and its family's own, beside the sizes.

    Attributes:
        put: puts the modules into a new model; it is told the channels of a head.
        tensors: the tensors of a family's own model by their names in an elastic one.
    """

    put: Callable[[PreTrainedModel, int], None]
    tensors: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


# --- attention pooling of SigLIP --------------------------------------------------------------


class AttentionPooling(nn.Module):
    """One vector from all tokens: attention with a learned query, then an MLP.

    The family's own is PyTorch's ``MultiheadAttention``, which has as many channels in its heads as
    the stream has. Here the names are a layer's.
    """

    def __init__(self, config: PreTrainedConfig, head_dim: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.num_attention_heads * head_dim
        self.heads = config.num_attention_heads
        self.probe = nn.Parameter(torch.zeros(hidden))
        linears: dict[str, nn.Module] = {
            name: nn.Linear(hidden, width) for name in ("q_proj", "k_proj", "v_proj")
        }
        self.self_attn = nn.ModuleDict({**linears, "out_proj": nn.Linear(width, hidden)})
        self.layernorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        neurons = config.intermediate_size
        mlp = {"fc1": nn.Linear(hidden, neurons), "fc2": nn.Linear(neurons, hidden)}
        self.mlp = nn.ModuleDict(cast("dict[str, nn.Module]", mlp))
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, states: Float[Tensor, "batch token hidden"]) -> Float[Tensor, "batch hidden"]:
        """The pooled vector."""

        def by_head(name: str, of: Tensor) -> Tensor:
            return self.self_attn[name](of).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = by_head("q_proj", self.probe.expand(states.shape[0], 1, -1))
        keys, values = by_head("k_proj", states), by_head("v_proj", states)
        attended = F.scaled_dot_product_attention(query, keys, values)
        pooled = self.self_attn["out_proj"](attended.flatten(1))
        return pooled + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layernorm(pooled))))


def _put_pooling(model: PreTrainedModel, head_dim: int) -> None:
    if model.config.vision_use_head:
        model.set_submodule("head", AttentionPooling(model.config, head_dim))


def _pooling_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(tensors)
    for kind in ("weight", "bias"):
        fused = found.pop(f"head.attention.in_proj_{kind}", None)
        if fused is None:  # it has no head
            return found
        for name, part in zip("qkv", fused.chunk(3), strict=True):
            found[f"head.self_attn.{name}_proj.{kind}"] = part
        found[f"head.self_attn.out_proj.{kind}"] = found.pop(f"head.attention.out_proj.{kind}")
    found["head.probe"] = found["head.probe"].flatten()
    return found


ATTENTION_POOLING = OwnParts(_put_pooling, _pooling_tensors)


# --- relative positions of MPNet --------------------------------------------------------------


class _Buckets(nn.Module):
    """Gives layers the buckets of distances; the family's own gives a bias for each head."""

    def forward(self, buckets: Int[Tensor, "query key"]) -> Int[Tensor, "query key 1"]:
        return buckets[..., None]


class BiasedAttention(nn.Module):
    """MPNet's attention with the layer's own table of biases: its heads are not other layers'."""

    def __init__(self, config: PreTrainedConfig, head_dim: int) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.attention_head_size = head_dim
        self.q, self.k, self.v = (nn.Linear(hidden, heads * head_dim) for _ in range(3))
        self.o = nn.Linear(heads * head_dim, hidden)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, heads)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        states: Float[Tensor, "batch token hidden"],
        mask: Tensor | None = None,
        buckets: Int[Tensor, "batch 1 token token"] | None = None,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        """The attended states, and probabilities too where ``output_attentions`` asks for them."""
        assert buckets is not None
        size = self.attention_head_size
        query, keys, values = (
            of(states).unflatten(-1, (-1, size)).transpose(1, 2) for of in (self.q, self.k, self.v)
        )
        scores = query @ keys.transpose(-1, -2) / size**0.5
        scores = scores + self.relative_attention_bias(buckets[:1, 0]).permute(0, 3, 1, 2)
        probabilities = self.dropout((scores if mask is None else scores + mask).softmax(dim=-1))
        output = self.o((probabilities @ values).transpose(1, 2).flatten(2))
        return (output, probabilities) if others.get("output_attentions") else (output,)


_SHARED = "encoder.relative_attention_bias"


def _put_biases(model: PreTrainedModel, head_dim: int) -> None:
    model.set_submodule(_SHARED, _Buckets())
    for layer in model.get_submodule("encoder.layer").children():
        layer.set_submodule("attention.attn", BiasedAttention(model.config, head_dim))


def _bias_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(tensors)
    shared = found.pop(f"{_SHARED}.weight")
    for name in tensors:
        if layer := re.fullmatch(r"(encoder\.layer\.\d+\.attention\.attn\.)q\.weight", name):
            found[f"{layer[1]}relative_attention_bias.weight"] = shared
    return found


BIASED_ATTENTION = OwnParts(_put_biases, _bias_tensors)
