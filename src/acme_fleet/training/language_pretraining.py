"""A small language model from texts alone: its tokenizer, then the model.

The result is an ordinary Hugging Face folder of a LLaMA, which ``reference.checkpoint`` takes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from acme_fleet.config.training import Training
from acme_fleet.data.checkpoint_files import WEIGHT_SUMS, weight_sums
from acme_fleet.data.language import Item, LanguagePreprocessing, read_language
from acme_fleet.data.learned import DATA_SUMS, digests
from acme_fleet.data.raw import Columns
from acme_fleet.data.samples import Samples, stratified_split
from acme_fleet.data.sources.registry import check_paths
from acme_fleet.errors import FleetError, WriteError
from acme_fleet.models.backbone.checkpoints import quiet, save_plain
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.features import LanguageModel
from acme_fleet.models.storage import with_prefix
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.locks import held
from acme_fleet.runs.sealed import write_marked_json
from acme_fleet.seeding import derive_seed, generator, seeded
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit
from acme_fleet.training.pretraining import RECORD, started

BEGIN, END, PADDING = "<|begin|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ bos_token }}{{ message.role }}\n{{ message.content }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
"""Of a model that is trained on messages: each one's role, a line feed and its content, between the
tokens that begin and end a text."""
_HELD_OUT = 0.05  # of the texts to validate on, and as many to test on
_CONTEXT = 512  # tokens that the model's positions go up to


@dataclass(frozen=True)
class Decoder:
    """Shape of a LLaMA; ``groups`` are its key/value heads."""

    hidden_size: int
    layers: int
    heads: int
    groups: int
    neurons: int
    vocabulary: int


DECODERS = {
    "llama-nano": Decoder(96, 3, 4, 2, 192, 600),
    "llama-micro": Decoder(192, 4, 6, 3, 512, 2000),
    "llama-mini": Decoder(384, 6, 6, 3, 1024, 8000),
}
"""Shapes by name: 0.3, 1.9 and 11 million parameters, with words that are the head too."""


@dataclass(frozen=True)
class LanguageRecipe:
    """A pre-training's model, data and settings.

    Attributes:
        model: a name of :data:`DECODERS`.
        training: epochs, batch size, learning rate, weight decay.
        max_tokens: of a text; a longer one is refused.
        seed: decides everything.
    """

    model: str
    training: Training
    max_tokens: int = 64
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "training": self.training.model_dump()}


def pretrain_language(
    data: Path,
    text_key: str,
    recipe: LanguageRecipe,
    folder: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Train a tokenizer and a LLaMA on texts, and save both; stopped, it goes on.

    Where there are messages, the tokenizer gets :data:`CHAT_TEMPLATE`.

    Args:
        data: JSON Lines, see :func:`acme_fleet.data.language.read_language`.
        text_key: of plain texts.
        recipe: what is trained, and how.
        folder: gets the checkpoint and ``pretraining.json``.
        progress: called with finished and all epochs, and the validation loss in words.

    Returns:
        What ``pretraining.json`` holds: recipe, numbers of texts, losses.

    Raises:
        FleetError: if the texts cannot be read, or there is no such model.
        RunError: if the folder holds something else, or another process works in it.
        WriteError: if a file cannot be written; the same call goes on with what is finished.
    """
    if recipe.model not in DECODERS:
        raise FleetError(
            f"--model: there is no {recipe.model}; choose one of {', '.join(DECODERS)}"
        )
    check_paths([data], "--data", folders=False)
    items = list(read_language([data], Columns(text_key, "label"), "--data").items)
    material = _prepared(items, recipe)  # refused texts leave no folder behind
    with held(folder):
        try:
            return _pretrained(data, material, recipe, folder, progress)
        except WriteError as error:
            raise WriteError(f"{error}; the same command goes on with what is finished") from error


@dataclass(frozen=True)
class _Material:
    """A new tokenizer, and the texts in its tokens."""

    tokenizer: PreTrainedTokenizerFast
    samples: Samples


def _prepared(items: list[Item], recipe: LanguageRecipe) -> _Material:
    template = CHAT_TEMPLATE if any("messages" in item for item in items) else None
    vocabulary = DECODERS[recipe.model].vocabulary
    tokenizer = _tokenizer([_plain(item) for item in items], vocabulary, template)
    preprocessing = LanguagePreprocessing(
        tokenizer=_document(tokenizer),
        max_tokens=recipe.max_tokens,
        pad_id=_number(tokenizer, PADDING),
        special_tokens={k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        chat_template=template,
    )
    inputs, labels = preprocessing.learned(items)
    return _Material(tokenizer, Samples(inputs, labels, torch.ones(len(items), dtype=torch.int64)))


def _pretrained(
    data: Path,
    material: _Material,
    recipe: LanguageRecipe,
    folder: Path,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    tokenizer, samples, training = material.tokenizer, material.samples, recipe.training
    state = started(folder, recipe.describe(), len(samples))
    with writing(folder / "tokenizer.json"):
        tokenizer.save_pretrained(folder)
    known, validation, test = _parts(samples, recipe.seed)
    config = _config(DECODERS[recipe.model], tokenizer)
    model = new_language_model(config, recipe.seed)

    def tell(epoch: int, note: str) -> None:
        told = GENERATION.written(evaluate(GENERATION, model, validation))
        progress(epoch, training.epochs, f"{note}, validation {told}")

    draw = generator(recipe.seed, "pretraining")
    fit(GENERATION, model, known, training, draw, on_epoch=tell, state=state)
    _save(model.eval(), config, folder)
    record = {
        "recipe": recipe.describe(),
        "samples": len(samples),
        DATA_SUMS: digests([data]),
        "params": sum(p.numel() for p in model.parameters()),
        "validation": _figures(model, validation),
        "test": _figures(model, test),
        WEIGHT_SUMS: weight_sums(folder),
    }
    write_marked_json(folder / RECORD, record)
    state.remove()
    return record


def new_language_model(config: LlamaConfig, seed: int) -> LanguageModel:
    """An untrained LLaMA whose words are its language head too."""
    with seeded(derive_seed(seed, "reference")):
        backbone = LlamaModel(copy.deepcopy(config))
    backbone.config.language_head = "tied"
    return LanguageModel(as_elastic(backbone))


def _plain(item: Item) -> str:
    if "messages" in item:
        return "\n".join(text for message in item["messages"] for text in message.values())
    return "".join(item.values())


def _tokenizer(
    texts: Sequence[str], vocabulary: int, template: str | None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PADDING, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        chat_template=template,
    )


def _number(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return tokenizer.get_vocab()[token]


def _document(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _parts(samples: Samples, seed: int) -> tuple[Samples, Samples, Samples]:
    random = np.random.default_rng(derive_seed(seed, "pretraining", "split"))
    known, rest = stratified_split(samples.strata, 2 * _HELD_OUT, random)
    first, second = stratified_split(np.zeros(len(rest), np.int64), 0.5, random)
    indices = known, rest[first], rest[second]
    known_samples, validation, test = (samples[torch.from_numpy(index)] for index in indices)
    return known_samples, validation, test


def _config(shape: Decoder, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        initializer_range=shape.hidden_size**-0.5 / 2,
        bos_token_id=_number(tokenizer, BEGIN),
        eos_token_id=_number(tokenizer, END),
        pad_token_id=_number(tokenizer, PADDING),
    )


def _figures(model: LanguageModel, samples: Samples) -> dict[str, float]:
    result = evaluate(GENERATION, model, samples)
    return {"loss": result.loss, "accuracy": result.score, "samples": len(samples)}


def _save(model: LanguageModel, config: LlamaConfig, folder: Path) -> None:
    with torch.device("meta"):
        plain = LlamaForCausalLM(config)
    tensors = with_prefix("model", model.backbone.state_dict())
    plain.load_state_dict(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, assign=True
    )
    plain.tie_weights()
    with quiet():
        save_plain(plain, folder)
