"""Classify with this folder in ExecuTorch: python run.py IMAGE… or python run.py TEXT…

It needs: pip install executorch torch numpy, and pillow or tokenizers. Images must have the model's
size. On a phone, load model.pte with ExecuTorch's library for Kotlin, Swift or C++.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent


def inputs(one, rule):
    """Bytes of an image, shape (1, height, width, channels), or tokens of a text, (1, tokens)."""
    if "max_tokens" in rule:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        tokenizer.no_padding()
        return torch.tensor([tokenizer.encode(one).ids])
    from PIL import Image

    image = Image.open(one).convert("RGB" if rule["channels"] == 3 else "L")
    if (image.height, image.width) != (rule["height"], rule["width"]):
        raise ValueError(f"resize it to {rule['width']} × {rule['height']} as manifest.json says")
    return torch.from_numpy(np.array(image)).reshape(1, image.height, image.width, -1)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.stderr.write("usage: python run.py IMAGE… or python run.py TEXT…\n")
        sys.exit(2)
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    method = Runtime.get().load_program(HERE / "model.pte").load_method("forward")
    failed = False
    for one in sys.argv[1:]:
        try:
            row = method.execute([inputs(one, manifest["preparation"])])[1][0]
            best = int(row.argmax())
            sys.stdout.write(f"{one}  {manifest['labels'][best]}  {float(row[best]):.3f}\n")
        except Exception as error:  # noqa: BLE001 (the others are answered nevertheless)
            failed = True
            sys.stderr.write(f"{one}: {' '.join(str(error).split())}\n")
    sys.exit(failed)
