"""A teacher that knows one toy task and lacks another, and a task file to distil from it."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from acme_fleet.config.training import Training
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.samples import Samples
from acme_fleet.models.backbone.checkpoints import load_language_model, save_plain
from acme_fleet.models.features import LanguageModel
from acme_fleet.models.storage import with_prefix
from acme_fleet.seeding import generator
from acme_fleet.stratos.calibration import write_calibration
from acme_fleet.stratos.cuts import Shape
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.loop import fit
from tiny_calibration import calibration
from tiny_language import written

LETTERS, _FILLERS = "abcdefgh", ["so", "well", "then", "now", "but", "and"]
_WORDS = ["<pad>", "<s>", "</s>", "<unk>", "last", "next", "=>", *LETTERS, *_FILLERS]
SHAPE = {
    **{"family": "llama", "layers": 2, "hidden": 32, "heads": 4, "key_heads": 2, "neurons": 48},
    **{"vocabulary": len(_WORDS), "context": 32, "tied": True},
}


def asked(word: str, count: int, seed: int) -> list[dict[str, str]]:
    """``last``: the letter again; ``next``: the one after it. The fillers mean nothing."""
    answers = dict(zip(LETTERS, LETTERS if word == "last" else LETTERS[1:] + "a", strict=True))
    every = list(itertools.product(LETTERS, _FILLERS, _FILLERS))
    drawn = random.Random(seed).sample(every, count)
    return [
        {"question": f"{word} {first} {second} {letter}", "answer": answers[letter]}
        for letter, first, second in drawn
    ]


def lines(rows: list[dict[str, str]], path: Path) -> Path:
    """With the answer as the reply."""
    return written([row | {"reply": row["answer"]} for row in rows], path)


def covered(rows: list[dict[str, str]], path: Path) -> Path:
    """The same as prompts with answers."""
    return written([_item(row) for row in rows], path)


def _item(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": f"{row['question']} =>", "answer": row["answer"]}


def save_tokenizer(folder: Path, further: list[str] | None = None) -> None:
    """One token a word."""
    words = [*_WORDS[: len(_WORDS) - len(further or [])], *(further or [])]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    ).save_pretrained(folder)


def untrained(folder: Path, **changes: Any) -> Path:
    """A LLaMA of :data:`SHAPE` with random weights, and its tokenizer."""
    config = Shape.model_validate(SHAPE | changes).config()
    config.update({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    config.initializer_range = 0.1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    save_tokenizer(folder)
    return folder


def teacher(folder: Path) -> Path:
    """It has learned ``last``."""
    untrained(folder)
    model = LanguageModel(load_language_model(folder))
    preprocessing = LanguagePreprocessing.of_checkpoint(folder, 8)
    assert isinstance(preprocessing, LanguagePreprocessing)
    inputs, labels = preprocessing.learned(map(_item, asked("last", 200, 0)))
    samples = Samples(inputs, labels, torch.ones(len(labels), dtype=torch.int64))
    training = Training(epochs=12, batch_size=20, learning_rate=0.01)
    fit(GENERATION, model, samples, training, generator(0, "teacher"))
    plain = LlamaForCausalLM.from_pretrained(folder)
    state = with_prefix("model", model.backbone.state_dict())
    plain.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    save_plain(plain, folder)
    return folder


def task(folder: Path, taught_by: Path, **changes: Any) -> Path:
    """A task file in a new folder: ``next`` from made data, a cut of the teacher, one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = asked("next", 220, 1)
    lines(rows[:180], folder / "made.jsonl")
    written(rows[180:184], folder / "train.jsonl")
    written(rows[184:], folder / "test.jsonl")
    covered(asked("last", 80, 2), folder / "replay.jsonl")
    calibrated = folder / "here.yaml"
    if not calibrated.exists():
        write_calibration(calibration(), calibrated)
    machine = {
        **{"name": "here", "vcpus": 2, "memory_gib": 8, "per_hour": 3600, "date": "2026-01-01"},
        "calibration": "here.yaml",
    }
    (folder / "machines.yaml").write_text(yaml.safe_dump({"machines": [machine]}))
    model = {
        **{"name": "tiny", "weights": str(taught_by), "licence": "mit", "tokenizer": "words"},
        **{"shape": SHAPE, "may_teach": True},
    }
    cuts = {"teacher": "tiny", "widths": [0.67], "depths": [2]}
    table = {"teachers": [model], "cuts": [cuts], **changes.pop("table", {})}
    (folder / "pairs.yaml").write_text(json.dumps(table))
    content: dict[str, Any] = {
        "name": "following",
        "data": {"train": "train.jsonl", "test": "test.jsonl", "prompt": "{question} =>"},
        "workload": {
            **{"prompt_tokens": 6, "answer_tokens": 2, "training_questions": 180},
            **{"epochs": 8, "batch_size": 20},
        },
        "servers": [{"kind": "machines", "path": "machines.yaml"}],
        "pairs": "pairs.yaml",
        "learning": {"made": "made.jsonl", "learning_rate": 0.01, "compute": "float32"},
    }
    for key, value in changes.items():
        own = content.get(key)
        content[key] = {**own, **value} if isinstance(own, dict) else value
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
