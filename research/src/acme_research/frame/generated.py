"""Data that a story makes for itself, where a scale must do without a download."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

from acme_fleet.data.sources.files import read_digits
from acme_fleet.seeding import seeded

_SAID = {
    "light": "turn light on off lamp bright",
    "weather": "what is weather rain sun wind",
    "music": "sing play song now loud please",
}
WORDS = " ".join(_SAID.values()).split()
_ROOMS = ("kitchen", "cellar", "shed", "gate")


def turned_digits(folder: Path) -> Path:
    """The digits as negatives, turned by a quarter."""
    path = folder / "turned-digits.npz"
    if not path.exists():
        raw = read_digits()
        images = np.ascontiguousarray(255 - np.rot90(raw.items, axes=(1, 2)))
        np.savez(path, images=images, labels=raw.labels)
    return path


def rooms(folder: Path) -> Path:
    """Sentences of four rooms: words of three intents in any order, one of them amiss."""
    path = folder / "rooms.jsonl"
    if not path.exists():
        draw, intents = random.Random(0), sorted(_SAID)
        rows = []
        for number in range(800):
            intent = intents[number % 3]
            words = [draw.choice(_SAID[intent].split()) for _ in range(draw.randint(2, 5))]
            words.append(draw.choice(_SAID[draw.choice(intents)].split()))
            room = _ROOMS[number % len(_ROOMS)]
            rows.append({"text": " ".join(words), "intent": intent, "room": room})
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tiny_bert(folder: Path, words: Iterable[str]) -> Path:
    """An untrained BERT that knows these words, in a folder as the hub has them."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
        sizes: dict[str, Any] = {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 4,
        }
        sizes |= {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32}
        config = BertConfig(vocab_size=len(vocabulary), **sizes)
        with seeded(0):
            BertModel(config).save_pretrained(folder)
    return folder
