"""One vector for a whole input, from the states of its tokens, as the encoder was pre-trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.checkpoint_files import read_object
from acme_fleet.errors import FleetError
from acme_fleet.models.families import family_of, own_pooling
from acme_fleet.runs.atomic import replacing

_FILE = Path("1_Pooling", "config.json")
# The names in a sentence encoder's 1_Pooling/config.json.
_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


_PARTS: dict[Pooling, tuple[str, ...]] = {
    "first_mean": ("pooling_mode_cls_token", "pooling_mode_mean_tokens"),
    **{pooling: (mode,) for mode, pooling in _MODES.items()},
}


def pooled_size(pooling: Pooling, hidden: int) -> int:
    """Numbers in a pooled vector."""
    return 2 * hidden if pooling == "first_mean" else hidden


def pool(
    states: Float[Tensor, "batch token hidden"],
    mask: Shaped[Tensor, "batch token"] | None,
    pooling: Pooling,
    prefix_tokens: int,
) -> Float[Tensor, "batch pooled"]:
    """Pool the states of real tokens; padding before or behind them changes nothing.

    ``first`` is the first real token, ``last`` the last one, ``mean`` the mean of all real tokens
    of a text, or of all patches of an image, and ``first_mean`` joins the first and the mean.

    Args:
        states: of the last layer.
        mask: 1 or true for real tokens; images have none.
        pooling: the way.
        prefix_tokens: tokens of an image before its patches. They are left out of its mean.
    """
    if pooling == "first_mean":
        parts = [pool(states, mask, part, prefix_tokens) for part in ("first", "mean")]
        return torch.cat(parts, dim=1)
    if mask is None:
        if pooling == "mean":
            return states[:, prefix_tokens:].mean(dim=1)
        return states[:, 0 if pooling == "first" else -1]
    if pooling == "mean":
        real = mask[:, :, None].to(states.dtype)
        return (states * real).sum(dim=1) / real.sum(dim=1).clamp_min(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    # argmax takes the first of equals: the first 1, or the largest index of a 1.
    chosen = (mask.long() if pooling == "first" else mask * (places + 1)).argmax(dim=1)
    return states.gather(1, chosen[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]


def pool_by(model: PreTrainedModel, pooling: Pooling) -> None:
    """Set how a backbone is pooled; a module that pools by attention goes if it is not used.

    Raises:
        FleetError: if it cannot be pooled so.
    """
    family = family_of(model.config)
    if pooling == "attention" and own_pooling(model.config) != "attention":
        kind = model.config.model_type.removeprefix("acme_")
        raise FleetError(f"reference.pooling: this {kind} has no attention to pool by")
    model.config.pooling = pooling
    if family.pooler is not None and pooling != "attention" and model.config.vision_use_head:
        model.config.vision_use_head = cast("Any", model).use_head = False
        delattr(model, family.pooler)


def poolings_of(config: PreTrainedConfig, known: Pooling | None) -> list[Pooling]:
    """The one way to pool that is known, or those that a family is used with, its own first."""
    return [known] if known else list(dict.fromkeys((own_pooling(config), "mean")))


def write_pooling(folder: Path, pooling: Pooling, hidden: int) -> None:
    """Write the file that :func:`pooling_of_checkpoint` reads; a family's own attention has none.

    Raises:
        WriteError: if it cannot be written.
    """
    if pooling == "attention":
        return
    file = folder / _FILE
    named = {mode: mode in _PARTS[pooling] for mode in _MODES}
    with replacing(file) as path:
        path.write_text(json.dumps({"word_embedding_dimension": hidden, **named}, indent=2))


def pooling_of_checkpoint(checkpoint: str | Path, hidden: int) -> Pooling | None:
    """The pooling that ``1_Pooling/config.json`` of a sentence encoder names; none without it.

    Raises:
        FleetError: if the file cannot be read, disagrees with the hidden size, or names a pooling
            that is not one of ours.
    """
    file = Path(checkpoint) / _FILE
    if not file.is_file():
        return None
    content = read_object(file, str(file))
    size = content.get("word_embedding_dimension")
    named = [key for key in content if key.startswith("pooling_mode_") and content[key]]
    if size != hidden:
        raise FleetError(f"{file}: word_embedding_dimension is {size}, the model has {hidden}")
    match sorted(_MODES.get(name, "unknown") for name in named):
        case ["first" | "mean" | "last" as one]:
            return one
        case ["first", "mean"]:
            return "first_mean"
    raise FleetError(
        f"{file}: cannot pool by {', '.join(named) or 'nothing'}; known are {', '.join(_MODES)}"
    )
