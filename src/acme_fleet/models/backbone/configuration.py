"""Model configurations are checked before transformers sees them.

A configuration from a message, a device folder or a checkpoint is a dictionary that somebody else
wrote. transformers takes any key and allocates what it is told to. Here every key that decides
what a backbone computes has a type and bounds; no other key gets through.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, create_model
from pydantic import ValidationError as Invalid
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN

from acme_fleet.config.backbone import Pooling
from acme_fleet.config.devices import Precision
from acme_fleet.errors import AcmeError, FleetError
from acme_fleet.outside import one_line


def _known_activation(name: str) -> str:
    if name not in ACT2FN:
        raise ValueError(f"transformers knows no activation {one_line(name, 60)!r}")
    return name


def _one_side(value: Any) -> Any:
    """A square's side where both sides are given; other pairs are left for the type to refuse."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    return value[0] if pair and value[0] == value[1] else value


def _whole(least: int, most: int) -> Any:
    return Annotated[int, Field(strict=True, ge=least, le=most)]


def _number(least: float, most: float) -> Any:
    return Annotated[float, Field(strict=True, ge=least, le=most, allow_inf_nan=False)]


def _listed(entry: Any, most: int) -> Any:
    """A list whose length is checked before its entries are."""

    def short(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) > most:
            raise ValueError(f"{len(value):,} entries are more than {most:,}")
        return value

    return Annotated[list[entry], BeforeValidator(short)]


_Size, _Neurons, _Layers, _Heads = (_whole(1, 2**power) for power in (16, 20, 9, 10))
_Words = _whole(1, 2**24)
_Pixels = Annotated[_whole(1, 2**14), BeforeValidator(_one_side)]
_Share = _number(0.0, 1.0)
_Never = Annotated[Literal[False], BeforeValidator(lambda _: False)]
"""A mask token serves pre-training alone: it is left out whatever the configuration says."""
_Positive = _number(1e-30, 1e12)
_Activation = Annotated[str, Field(max_length=100), AfterValidator(_known_activation)]
_Flag: Any = Annotated[bool, Field(strict=True)]


LanguageHead = Literal["tied", "own"]
"""The matrix of a decoder's language head: that of its words, or one of its own."""
_RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
_ROPE_RULES: dict[str, Any] = {
    **dict.fromkeys(("rope_type", "type"), _RopeType),
    **dict.fromkeys(("rope_theta", "factor", "attention_factor", "beta_fast"), _Positive),
    **dict.fromkeys(("beta_slow", "low_freq_factor", "high_freq_factor"), _Positive),
    **dict.fromkeys(("mscale", "mscale_all_dim"), _Positive),
    **dict.fromkeys(("short_factor", "long_factor"), _listed(_Positive, 2**12)),
    "partial_rotary_factor": _Share,
    "original_max_position_embeddings": _Words,
    "truncate": _Flag,
}
_rope_fields: Any = {name: (rule | None, None) for name, rule in _ROPE_RULES.items()}
_Rope: Any = create_model(
    "Rope",
    __doc__="Rotary position embeddings, in the words of transformers 4 and 5.",
    __config__=ConfigDict(extra="forbid"),
    **_rope_fields,
)
_kinds: Any = dict.fromkeys(("full_attention", "sliding_attention"), (_Rope | None, None))
_RopeByKind: Any = create_model(
    "RopeByKind",
    __doc__="The same for each kind of layer.",
    __config__=ConfigDict(extra="forbid"),
    **_kinds,
)

_RULES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "dim"), _Size),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), _Neurons),
    **dict.fromkeys(("num_hidden_layers", "n_layers"), _Layers),
    **dict.fromkeys(("num_attention_heads", "n_heads"), _Heads),
    "num_key_value_heads": _Heads | None,
    "head_dim": _whole(1, 2**12) | None,
    "image_size": _Pixels,
    "patch_size": _Pixels,
    "num_channels": _whole(1, 2**8),
    "vocab_size": _Words,
    "max_position_embeddings": _Words,
    "type_vocab_size": _whole(1, 2**10),
    "pad_token_id": _whole(-(2**24), 2**24) | None,
    **dict.fromkeys(("hidden_act", "activation", "hidden_activation"), _Activation),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout"), _Share),
    "attention_dropout": _Share,
    "initializer_range": _number(0.0, 10.0),
    **dict.fromkeys(("embedding_dropout", "mlp_dropout"), _Share),
    **dict.fromkeys(("layer_norm_eps", "rms_norm_eps", "norm_eps"), _number(1e-30, 1.0)),
    **dict.fromkeys(("qkv_bias", "attention_bias", "mlp_bias", "norm_bias"), _Flag),
    "is_decoder": _Flag,
    "vision_use_head": _Flag,
    "relative_attention_num_buckets": _whole(32, 2**12),
    "local_attention": _Words,
    "add_cross_attention": Literal[False],
    "mlp_ratio": _whole(1, 2**9),
    "layerscale_value": _number(-1e6, 1e6),
    "drop_path_rate": _Share,
    "use_swiglu_ffn": Literal[False],
    "use_mask_token": _Never,
    "rope_parameters": _Rope | _RopeByKind | None,
    "use_sliding_window": _Flag,
    "sliding_window": _Words | None,
    "max_window_layers": _whole(0, 2**9),
    "layer_types": _listed(Literal["full_attention", "sliding_attention"], 2**9) | None,
    "no_rope_layers": _listed(Literal[0, 1], 2**9) | None,
    **dict.fromkeys(("no_rope_layer_interval", "sliding_window_pattern"), _Layers),
    "global_attn_every_n_layers": _Layers,
    "use_bidirectional_attention": _Flag | None,
    "query_pre_attn_scalar": _whole(1, 2**16),
    # Of elastic models only.
    "heads_per_layer": _listed(_Heads, 2**9),
    "neurons_per_layer": _listed(_Neurons, 2**9),
    "pooling": Pooling,
    "precision": Precision,
    "embed_scale": _Positive,
    "first_layer_norm": _Flag,
    "language_head": LanguageHead | None,
    # As transformers 4 wrote it.
    "rope_scaling": _Rope | None,
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), _Positive),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta"), _Positive),
}
"""Type and bounds by key. The largest models of the families are far inside them."""

WITHOUT_EFFECT = {
    *("encoder_stride", "pooler_output_size", "pooler_act", "sinusoidal_pos_embds", "use_cache"),
    *("classifier_dropout", "qa_dropout", "seq_classif_dropout", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pretraining_tp"),
    # Of training, of other heads on a ModernBERT, of CLIP's projection into a space with texts.
    *("initializer_factor", "initializer_cutoff_factor", "projection_dim"),
    *("classifier_activation", "classifier_bias", "classifier_pooling", "decoder_bias"),
    *("sparse_prediction", "sparse_pred_ignore_index", "deterministic_flash_attn"),
    *("cls_token_id", "sep_token_id"),
    # Gemma's attention does not read the first, the second is of its language model's head.
    *("attn_logit_softcapping", "final_logit_softcapping"),
    "_sliding_window_pattern",  # layer_types says what it made
    # Of a DINOv2 that is a detector's backbone.
    *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices", "stage_names"),
    *(field.name for field in dataclasses.fields(PreTrainedConfig)),
}
"""Keys of the families' configurations that change nothing in what a loaded backbone computes."""

_ELASTIC = (
    *("heads_per_layer", "neurons_per_layer", "head_dim", "pooling", "precision"),
    "language_head",
)
_ROPE = ("rope_scaling", "rope_theta")
_FURTHER = {
    "gemma3_text": ("embed_scale", "rope_local_base_freq", "sliding_window_pattern"),
    "modernbert": (
        *("first_layer_norm", "global_rope_theta", "local_rope_theta"),
        "global_attn_every_n_layers",
    ),
}
"""Keys of a family that are no fields of its configuration's class."""
_MOST_CLASSES = 100_000


@functools.cache
def _rules(family: str) -> dict[str, tuple[str, Any]]:
    """By every name that a key of the family has: its own name, and its rule."""
    config_class = CONFIG_MAPPING[family]
    fields = {field.name for field in dataclasses.fields(config_class)}
    known = (*fields, *_ELASTIC, *_FURTHER.get(family, ()))
    keys = {name: name for name in known if name in _RULES}
    keys |= {name: name for name in _ROPE if "rope_parameters" in fields}
    keys |= {name: own for name, own in config_class.attribute_map.items() if own in keys}
    return {name: (own, TypeAdapter(_RULES[own])) for name, own in sorted(keys.items())}


def accepted(
    family: str,
    document: Mapping[str, Any],
    what: str,
    kind: type[AcmeError] = FleetError,
    *,
    only: bool = False,
) -> dict[str, Any]:
    """The keys of a configuration that decide a backbone's function, types and bounds checked.

    Args:
        family: the model type, without our prefix.
        document: the configuration; it may be anything that JSON can say.
        what: what it is, at the beginning of the message.
        kind: the error to raise.
        only: refuse other keys; otherwise they are left out.

    Raises:
        AcmeError: of this ``kind``, naming the key and its value.
    """
    rules, content = _rules(family), {}
    for key, value in document.items():
        if key not in rules:
            if only and key != "model_type":
                raise kind(f"{what}: a {family} has no key {one_line(str(key), 60)!r}")
            continue
        own, rule = rules[key]
        try:
            checked = rule.validate_python(value)
        except Invalid as error:
            told = error.errors(include_url=False, include_input=False, include_context=False)
            wrong = told[0]["msg"].removeprefix("Value error, ")
            raise kind(f"{what}: {key}: {one_line(wrong)} (got {_shown(value)})") from None
        if isinstance(checked, _Rope | _RopeByKind):
            checked = checked.model_dump(exclude_unset=True)
        if content.setdefault(own, checked) != checked:
            raise kind(f"{what}: {key} and {own} differ ({checked} and {content[own]})")
    return content


def checked_names(document: Mapping[str, Any], what: str) -> list[str]:
    """The class names of a checkpoint's ``id2label``, in order; none where it has none.

    Raises:
        FleetError: if they are too many, or are no texts with the numbers from 0 on.
    """
    named, count = document.get("id2label") or {}, document.get("num_labels")
    if not isinstance(named, dict):
        raise FleetError(f"{what}: id2label: should be an object (got {_shown(named)})")
    for key, size in (("num_labels", count), ("id2label", len(named))):
        if size is not None and not (type(size) is int and 0 <= size <= _MOST_CLASSES):
            raise FleetError(
                f"{what}: {key}: should be at most {_MOST_CLASSES:,} classes (got {_shown(size)})"
            )
    names = {str(number): name for number, name in named.items()}
    ordered = [names.get(str(number)) for number in range(len(names))]
    if not all(isinstance(name, str) for name in ordered):
        raise FleetError(f"{what}: id2label: should name the classes 0 to {len(names) - 1}")
    return [str(name) for name in ordered]


def _shown(value: Any) -> str:
    """A value, or its type where it may be endless."""
    if isinstance(value, str):
        return repr(one_line(value, 60))
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
    return f"a {type(value).__name__} of {len(value)}"
