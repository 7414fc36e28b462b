"""A device's language model for ``transformers``: ``AutoModelForCausalLM`` and ``generate()``.

Importing this module registers it, see :mod:`acme_fleet.models.auto_classes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, no_type_check

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from acme_fleet.models.auto_classes import Shipped, ShippedConfig, register
from acme_fleet.models.backbone.elastic import described
from acme_fleet.models.description import LANGUAGE_TYPE, Description, parse_description
from acme_fleet.models.families import ELASTIC, dimensions
from acme_fleet.models.features import language_weight, penultimate_state
from acme_fleet.models.header.continued import Continued
from acme_fleet.models.header.module import Header
from acme_fleet.models.padding import real_first
from acme_fleet.models.shipped import GENERATION
from acme_fleet.tasks.generation import GENERATION as TASK


@no_type_check
class AcmeLanguageConfig(ShippedConfig):
    """Of a device's language model.

    What the header remembers of tokens that were seen before lies in the cache of keys and values
    as that of one more layer, so that all that ``generate`` does to a cache it does to it.
    """

    model_type = LANGUAGE_TYPE

    @property
    def description(self) -> Description:
        """See the base class; transformers gives every configuration some classes."""
        parts = {"backbone": self.backbone, "header": self.header}
        return parse_description({**parts, "model_type": self.model_type}, "the config")

    @property
    def own(self) -> Any:
        """The backbone's configuration."""
        assert self.backbone is not None
        family = self.backbone["model_type"].removeprefix("acme_")
        return ELASTIC[family][0].from_dict(self.backbone)

    @property
    def num_hidden_layers(self):
        """Layers of the cache: the backbone's, and one for the header."""
        return self.own.num_hidden_layers + 1

    @property
    def layer_types(self):
        """Kinds of these layers; the header's keeps all tokens."""
        own = self.own
        kinds = getattr(own, "layer_types", None)
        if not kinds:
            slides = getattr(own, "sliding_window", None) is not None
            kind = "sliding_attention" if slides else "full_attention"
            kinds = [kind] * own.num_hidden_layers
        return [*kinds, "full_attention"]

    @property
    def sliding_window(self):
        """Tokens that a sliding layer sees."""
        return getattr(self.own, "sliding_window", None)

    @property
    def vocab_size(self):
        """Words that it knows."""
        return self.own.vocab_size

    @property
    def hidden_size(self):
        """Channels of a hidden state."""
        return self.own.hidden_size


class AcmeForCausalLM(Shipped, GenerationMixin):
    """A device's language model; ``generate()`` works with and without a cache."""

    config_class = AcmeLanguageConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._layers = dimensions(self.backbone.config).layers

    @classmethod
    def of(cls, backbone: PreTrainedModel, header: Header) -> AcmeForCausalLM:
        """The model of these parts, which it shares."""
        document = {"model_type": backbone.config.model_type, **described(backbone.config)}
        about = Description(model_type=LANGUAGE_TYPE, backbone=document, header=header.plan)
        with torch.device("meta"):
            model = cls(AcmeLanguageConfig.from_dict(about.document()))
        model.backbone, model.header = backbone, header
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """See :meth:`Shipped.from_pretrained`; what ends a text is read too."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if (Path(pretrained_model_name_or_path) / GENERATION).is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                pretrained_model_name_or_path
            )
        return loaded

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Logits ``(batch, tokens, words)`` for the token after each of ``(batch, tokens)``.

        Args:
            input_ids: tokens; with a cache, those that are new.
            attention_mask: 1 for real tokens, those in the cache included.
            position_ids: of the new tokens.
            past_key_values: a cache of earlier tokens, which is extended.
            labels: the tokens themselves, -100 for those that do not count.
            use_cache: make a cache where none is given.
            logits_to_keep: logits of so many last tokens; 0 keeps all.
            return_dict: a tuple if false.
            others: what ``generate`` passes to some models, which is not used.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        outputs = self.backbone(
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            output_hidden_states=True,
        )
        states = outputs.last_hidden_state, penultimate_state(outputs.hidden_states)
        if past_key_values is None:
            changed = self._changed(*states, attention_mask)
        else:
            changed = self._continued(*states, attention_mask, past_key_values)
        logits = F.linear(changed[:, -logits_to_keep:], self._words())
        loss = None if labels is None else _loss(logits, labels)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def most_probable(
        self,
        prompts: Sequence[Int[Tensor, " _"]],
        most: int,
        pad: int = 0,
    ) -> Int[Tensor, "prompts written"]:
        """Continuations by the most probable token each, at most ``most`` of them.

        Args:
            prompts: tokens of texts.
            most: new tokens; fewer if all texts have ended.
            pad: stands before shorter prompts, masked, and behind texts that have ended.
        """
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padding stands before: texts go on behind
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        generate = cast("Any", self).generate
        options = {"max_new_tokens": most, "do_sample": False, "pad_token_id": pad}
        written: Tensor = generate(input_ids=ids, attention_mask=mask, **options)
        return written[:, longest:]

    def _words(self) -> Tensor:
        return self.backbone.get_parameter(language_weight(self.backbone.config))

    def _continued(self, last: Tensor, before: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """The header's hidden states of new tokens, ``(batch, tokens, hidden)``."""
        header, new = Continued(self.header), last.shape[1]
        seen = cache.get_seq_length(self._layers)
        if mask is None:
            mask = last.new_ones(len(last), seen + new)
        real = mask != 0
        places = (real.cumsum(dim=1) - 1).clamp_min(0)[:, -new:]
        window = F.pad(real, (header.room, 0))[:, None, -(header.room + new) :]
        memory = last.new_zeros(len(last), header.channels, header.room)
        if seen and header.room:
            kept = (
                cast("Any", cache.layers[self._layers]).keys[:, 0, -header.room :].transpose(1, 2)
            )
            memory = F.pad(kept, (header.room - kept.shape[2], 0))
        maps = [x.masked_fill(~real[:, -new:, None], 0.0).transpose(1, 2) for x in (last, before)]
        changed, added = header(*maps, window, places, memory)
        row = added.transpose(1, 2)[:, None]
        cache.update(row, row[..., :0], self._layers)
        return changed.transpose(1, 2)

    def _changed(self, last: Tensor, before: Tensor, mask: Tensor | None) -> Tensor:
        """The header's hidden states of all tokens, ``(batch, tokens, hidden)``."""
        if mask is None:
            mask = last.new_ones(last.shape[:2])
        places = torch.arange(mask.shape[1], device=last.device).expand(mask.shape)
        moved, real = real_first({"input_ids": places, "attention_mask": mask})
        assert real is not None
        order = moved["input_ids"]
        index = order[..., None].expand(-1, -1, last.shape[2])
        maps = {
            name: states.gather(1, index).masked_fill(~real[..., None], 0.0).transpose(1, 2)
            for name, states in (("last", last), ("penultimate", before))
        }
        none = last.new_zeros(len(last), 0)
        changed = self.header(**maps, pooled=none, mask=real[:, None]).transpose(1, 2)
        return torch.empty_like(changed).scatter(1, index, changed)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """By transformers' convention a label is the token itself."""
    return TASK.loss(logits[:, :-1].transpose(1, 2), labels[:, 1:].to(logits.device))


def _register() -> None:
    register(AcmeLanguageConfig, AcmeForCausalLM, AutoModelForCausalLM.__name__)
    AutoTokenizer.register(AcmeLanguageConfig, tokenizer_class=PreTrainedTokenizerFast)


_register()
