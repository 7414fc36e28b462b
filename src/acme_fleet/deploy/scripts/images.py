"""Classify images with this folder alone: python run.py IMAGE…

It needs: pip install onnxruntime numpy pillow
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def pixels(path, rule):
    """Bytes of shape (height, width, channels): upright, on white, resized, the centre cut out."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        sys.exit(f"{path}: more than 8 bits a channel")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.convert("RGB" if rule["channels"] == 3 else "L")
    size = rule["size"]
    if isinstance(size, int):  # of the shorter side
        longer = int(size * max(image.size) / min(image.size))
        size = (size, longer) if image.height <= image.width else (longer, size)
    if size and (image.height, image.width) != tuple(size):
        image = image.resize((size[1], size[0]), rule["resample"])
    if rule["crop"]:
        left, top = (image.width - rule["width"]) // 2, (image.height - rule["height"]) // 2
        image = image.crop((left, top, left + rule["width"], top + rule["height"]))
    return np.asarray(image).reshape(rule["height"], rule["width"], rule["channels"])


if __name__ == "__main__":
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(HERE / "model.onnx")
    for name in sys.argv[1:]:
        batch = pixels(name, manifest["preparation"])[None]
        answers = session.run(["probabilities"], {"pixels": batch})[0]
        probabilities = np.asarray(answers)[0]
        best = int(probabilities.argmax())
        sys.stdout.write(f"{name}  {manifest['labels'][best]}  {probabilities[best]:.3f}\n")
