"""Classify texts with this folder alone: python run.py TEXT…

It needs: pip install onnxruntime numpy tokenizers
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def tokens(text, tokenizer, rule):
    """The model's inputs for one text, of two tokens at least."""
    numbers = tokenizer.encode(text).ids
    padding = max(0, 2 - len(numbers))
    ids = numbers + padding * [rule["pad_id"]]
    mask = len(numbers) * [1] + padding * [0]
    return {"input_ids": np.array([ids]), "attention_mask": np.array([mask])}


if __name__ == "__main__":
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    rule = manifest["preparation"]
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(rule["max_tokens"])
    session = onnxruntime.InferenceSession(HERE / "model.onnx")
    for text in sys.argv[1:]:
        answers = session.run(["probabilities"], tokens(text, tokenizer, rule))[0]
        probabilities = np.asarray(answers)[0]
        best = int(probabilities.argmax())
        sys.stdout.write(f"{text}  {manifest['labels'][best]}  {probabilities[best]:.3f}\n")
