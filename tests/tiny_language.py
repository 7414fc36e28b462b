"""A tiny decoder with its tokenizer, and a fleet of devices that write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from acme_fleet.config.devices import Precision
from acme_fleet.cost.variant import Variant
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.messages.header_plan import Genotype, HeaderPlan
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import CustomizedModel, LanguageModel
from acme_fleet.models.header.module import build_header
from acme_fleet.models.shipped import save_device_model
from tiny_fleet import changed
from tiny_texts import SAID, said, write_rows

WORDS = sorted({word for words in SAID.values() for word in words} | {*SAID, "=>"})
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tiny_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a word; texts begin with one of their own."""
    listed = [PAD, BEGIN, END, "<unk>", "user", "assistant", *WORDS]
    numbers = {word: number for number, word in enumerate(listed)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token="<unk>",
        chat_template=template,
    )


def tiny_llama(folder: Path, *, tied: bool = True, template: str | None = None) -> Path:
    """An untrained LLaMA with grouped queries, as the hub has them."""
    tokenizer = tiny_tokenizer(template)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def written_rows(path: Path, count: int, *, answers: bool) -> Path:
    """Sentences of three intents or, with ``answers``, prompts that ask for the intent."""
    rows: list[dict[str, str]] = said(count)
    if answers:
        rows = [
            {"prompt": f"{row['text']} =>", "answer": row["intent"], "intent": row["intent"]}
            for row in rows
        ]
    return write_rows(path, rows)


_SETTINGS: dict[str, Any] = {
    "task": "generation",
    "compute": "float32",
    "data": {"source": "language", "label_column": "intent", "max_tokens": 12},
    "reference": {
        "layer_decay": 1.0,
        "training": {"epochs": 6, "batch_size": 16, "learning_rate": 0.03},
    },
    "backbone": {
        "widths": [0.7, 1.0],
        "depths": [1, 2],
        "precisions": ["int8"],
        "importance_samples": 32,
        "distillation": {
            "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.005},
            "logits_loss": "soft_cross_entropy",
        },
    },
    "header": {"blocks": 1, "channels": 6},
    "search": {
        "when": "always",
        "steps": 2,
        "children_per_step": 2,
        "weight_updates_per_step": 1,
        "final_samples": 2,
        "rivals": False,
        "fine_tuning": {"epochs": 1, "batch_size": 16},
    },
    "personalization": {"rounds": 1, "local": {"epochs": 2, "batch_size": 16}},
}


def language_settings(train: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a fleet of one cluster with two devices; ``changes`` as in ``tiny_fleet``."""
    devices = [{"name": f"helper-{number}", "storage": "40 kB"} for number in (1, 2)]
    own = {
        "data.train": str(train),
        "reference.checkpoint": str(checkpoint),
        "clusters": [{"name": "home", "devices": devices}],
    }
    return changed(_SETTINGS, own | changes)


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    """JSON Lines of any objects."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def bytewise_decoder(folder: Path, family: str = "llama", **sizes: Any) -> Path:
    """An untrained decoder with a byte-level tokenizer, whose rows fill groups of 32."""
    rows = [f"{' '.join(words)} {name}" for name, words in SAID.items()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=TEMPLATE,
    )
    whole.save_pretrained(folder)
    config = CONFIG_MAPPING[family](
        **{
            "vocab_size": len(whole),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            **sizes,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def writer_folder(
    checkpoint: Path,
    folder: Path,
    genotype: Genotype,
    precision: Precision = "float32",
    share: float = 1.0,
    strength: float = 0.2,
) -> Path:
    """A device's folder: the checkpoint, perhaps cut, with a header of random weights."""
    model = LanguageModel(load_language_model(checkpoint))
    elastic = ElasticClassifier(model)
    shape = elastic.shape(Variant(share, elastic.sizes.layers, share))
    backbone = elastic.extract(replace(shape, precision=precision))
    hidden = backbone.config.hidden_size
    plan = HeaderPlan(genotype=genotype, hidden=hidden, classes=hidden, axes=1, pooled=0)
    draw = torch.Generator().manual_seed(2)
    tensors = {n: strength * torch.randn(s, generator=draw) for n, s in plan.shapes().items()}
    header = build_header(plan, tensors)
    rule = LanguagePreprocessing.of_checkpoint(checkpoint, 24)
    save_device_model(folder, CustomizedModel(backbone, header), header, ["texts"], rule, ["texts"])
    return folder
