"""Classify texts with this folder alone: python run.py TEXT…

It needs: pip install onnxruntime numpy tokenizers
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def tokens(text, tokenizer, rule):
    """The model's inputs for one text, of two tokens at least."""
    encoding = tokenizer.encode(text)
    if all(encoding.special_tokens_mask):
        raise ValueError("no token stands for a word")
    numbers = encoding.ids
    padding = max(0, 2 - len(numbers))
    ids = numbers + padding * [rule["pad_id"]]
    mask = len(numbers) * [1] + padding * [0]
    return {"input_ids": np.array([ids]), "attention_mask": np.array([mask])}


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.stderr.write("usage: python run.py TEXT…\n")
        sys.exit(2)
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    rule, failed = manifest["preparation"], False
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(rule["max_tokens"])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact at int8
    session = onnxruntime.InferenceSession(HERE / "model.onnx", options)
    for text in sys.argv[1:]:
        try:
            inputs = tokens(text, tokenizer, rule)
            (row,) = np.asarray(session.run(["probabilities"], inputs)[0])
            sys.stdout.write(f"{text}  {manifest['labels'][row.argmax()]}  {row.max():.3f}\n")
        except Exception as error:  # noqa: BLE001 (the others are answered nevertheless)
            failed = True
            sys.stderr.write(f"{text!r}: {' '.join(str(error).split())}\n")
    sys.exit(failed)
