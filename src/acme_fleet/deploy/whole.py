"""A device's model from its input to its answer, for an exporter."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedConfig

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.models.features import CustomizedModel, penultimate_state
from acme_fleet.models.header.continued import Continued
from acme_fleet.models.header.module import Header

INPUTS = {"images": ("pixels",), "texts": ("input_ids", "attention_mask")}
OUTPUTS = ("logits", "probabilities")


class _Whole(nn.Module):
    """A model whose answers pass ``checked``, which an exporter may replace."""

    checked: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.checked = nn.Identity()


class OfImages(_Whole):
    """From bytes to logits and probabilities, by the arithmetic that the model was trained with."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: CustomizedModel, rule: ImagePreprocessing) -> None:
        super().__init__()
        self.model, self.factor = model, rule.rescale_factor
        for name, values in (("pixel_mean", rule.image_mean), ("pixel_std", rule.image_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of images of shape ``(batch, height, width, channels)``, bytes."""
        values = pixels.permute(0, 3, 1, 2).float() * self.factor
        logits = self.model(pixel_values=(values - self.pixel_mean) / self.pixel_std)
        logits = self.checked(logits)
        return logits, logits.softmax(dim=1)


class OfTexts(_Whole):
    """From tokens to logits and probabilities."""

    def __init__(self, model: CustomizedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of tokens and their mask, both of shape ``(batch, tokens)``; all are real without one."""
        logits = self.checked(self.model(input_ids=input_ids, attention_mask=attention_mask))
        return logits, logits.softmax(dim=1)


class OfLanguage(_Whole):
    """From new tokens, and what is remembered of those before, to logits and the next memory.

    The memory is keys and values of each layer, ``(batch, heads, past, head_dim)``, and the last
    values of the header's maps, ``(batch, channels, room)``, where it looks back. Padding stands
    before a text.
    """

    def __init__(self, model: CustomizedModel, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, head
        self.header = Continued(model.header) if isinstance(model.header, Header) else None

    @property
    def room(self) -> int:
        """Positions that the header's memory has."""
        return 0 if self.header is None else self.header.room

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *memory: Tensor
    ) -> tuple[Tensor, ...]:
        """Of new tokens ``(batch, new)``, and the mask of those before and these."""
        pairs = memory[: len(memory) - (self.room > 0)]
        cache, new, past = DynamicCache(), input_ids.shape[1], pairs[0].shape[2]
        for layer, (key, value) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
            cache.update(key, value, layer)
        real = attention_mask != 0
        places = (attention_mask.cumsum(dim=1) - 1).clamp_min(0).narrow(1, past, new)
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=_masks(real, past, self.backbone.config),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        last = outputs.last_hidden_state
        further: tuple[Tensor, ...] = ()
        if self.header is not None:
            room = self.header.room
            window = F.pad(real, (room, 0))[:, None].narrow(2, past, room + new)
            before = penultimate_state(outputs.hidden_states)
            maps = [
                torch.where(window[:, 0, room:, None], x, 0.0).transpose(1, 2)
                for x in (last, before)
            ]
            held = memory[-1] if room else last.new_zeros(last.shape[0], 0, 0)
            changed, added = self.header(*maps, window, places, held)
            last = changed.transpose(1, 2)
            if room:
                further = (torch.cat([held, added], dim=2)[..., new:],)
        layers = cast("list[Any]", cache.layers)
        kept = [x for layer in layers for x in (layer.keys, layer.values)]
        return (self.head(self.checked(last)), *kept, *further)


def _masks(
    real: Bool[Tensor, "batch tokens"], past: int, config: PreTrainedConfig
) -> Tensor | dict[str, Tensor]:
    """Masks of attention, true where a new token sees another; padding sees itself."""
    places = torch.arange(real.shape[1], device=real.device)
    queries = places[past:, None]
    own = queries == places
    seen = (places <= queries) & real[:, None, None] | own
    window = getattr(config, "sliding_window", None)
    near = seen if window is None else seen & (places > queries - window)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return near
    masks = {"full_attention": seen, "sliding_attention": near}
    return {kind: masks[kind] for kind in kinds}


@contextmanager
def silent() -> Iterator[None]:
    """An exporter's words about itself are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def grouped_queries() -> Iterator[None]:
    """Attention reads keys and values of a group as they are, once for all of its queries.

    transformers repeats them for each query unless this variable tells it otherwise.
    """
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
