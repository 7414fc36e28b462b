"""Makes what the short examples need, without a download: ``python examples/made.py``.

``made/`` then holds ``photos`` (handwritten digits as image files, a folder for each class),
``known.npz`` and ``writers.npz`` (the same digits by who wrote them), ``sentences.jsonl`` (said in
four rooms) and ``bert`` (a small BERT with a tokenizer, untrained).
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.utils.logging import disable_progress_bar

from acme_fleet.data.sources.moved_digits import read_moved_digits

MADE = Path(__file__).resolve().parents[1] / "made"
# Sheets of digits by other people, in the data set's order; the names are made up.
SHEETS = {"ada": 128, "ben": 130, "eva": 128, "leo": 128, "mia": 124, "tom": 130}
SAID = {
    "light": "turn switch the light lamp on off bright dark please",
    "weather": "what is the weather will it rain sun wind tomorrow",
    "music": "sing play the song some music louder now please",
    "timer": "wake me in an hour ten minutes tomorrow now",
}
ROOMS = {"kitchen": "timer", "bedroom": "light", "garden": "weather", "cellar": "music"}


def photos(folder: Path) -> None:
    """A folder of images for each class, as ``acme init --images`` takes it."""
    for part in (False, True):
        digits = read_moved_digits(test=part)
        for number, (image, label) in enumerate(zip(digits.items, digits.labels, strict=True)):
            own = folder / f"digit-{label}"
            own.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(own / f"{part:d}-{number}.png")


def writers(folder: Path) -> None:
    """The digits of eight people for the cloud, and those of six others with their names."""
    known, others = read_moved_digits(test=False), read_moved_digits(test=True)
    np.savez(folder / "known.npz", images=known.items, labels=known.labels)
    names = np.repeat(list(SHEETS), list(SHEETS.values()))
    np.savez(folder / "writers.npz", images=others.items, labels=others.labels, writer=names)


def sentences(path: Path) -> None:
    """Each room has an intent that is said there most; one word of a sentence is astray."""
    draw, rows = random.Random(0), []
    for _ in range(1200):
        room = draw.choice([*ROOMS])
        intent = ROOMS[room] if draw.random() < 0.5 else draw.choice([*SAID])
        words = draw.choices(SAID[intent].split(), k=draw.randint(3, 6))
        words.append(draw.choice(SAID[draw.choice([*SAID])].split()))
        rows.append({"text": " ".join(words), "intent": intent, "room": room})
    path.write_text("\n".join(map(json.dumps, rows)))


def small_bert(folder: Path) -> None:
    """A BERT as the hub has them, in a folder; it knows these words and has learned nothing."""
    words = dict.fromkeys(" ".join(SAID.values()).split())
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = BertConfig(
        vocab_size=len(tokens),
        max_position_embeddings=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={t: n for n, t in enumerate(tokens)}).save_pretrained(folder)


def main() -> None:
    disable_progress_bar()
    MADE.mkdir(exist_ok=True)
    photos(MADE / "photos")
    writers(MADE)
    sentences(MADE / "sentences.jsonl")
    small_bert(MADE / "bert")
    print(f"made photos, known.npz, writers.npz, sentences.jsonl and bert in {MADE}")


if __name__ == "__main__":
    main()
