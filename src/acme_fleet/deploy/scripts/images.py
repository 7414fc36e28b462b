"""Classify images with this folder alone: python run.py IMAGE…

It needs: pip install onnxruntime numpy pillow"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported
import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(path, rule):
    """Bytes of shape (height, width, channels): upright, on white, resized, the centre cut out."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        raise ValueError("more than 8 bits a channel")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.convert("RGB" if rule["channels"] == 3 else "L")
    size = rule["size"]
    if isinstance(size, int):  # of the shorter side
        size = [int(size * side / min(image.size)) for side in (image.height, image.width)]
    if size and (image.height, image.width) != tuple(size):
        image = image.resize((size[1], size[0]), rule["resample"])
    if rule["crop"]:
        left, top = (image.width - rule["width"]) // 2, (image.height - rule["height"]) // 2
        image = image.crop((left, top, left + rule["width"], top + rule["height"]))
    return np.asarray(image).reshape(rule["height"], rule["width"], rule["channels"])


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.stderr.write("usage: python run.py IMAGE…\n")
        sys.exit(2)
    manifest, failed = json.loads(Path(__file__).with_name("manifest.json").read_bytes()), False
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact at int8
    session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), options)
    for name in sys.argv[1:]:
        try:
            batch = pixels(name, manifest["preparation"])[None]
            (row,) = np.asarray(session.run(["probabilities"], {"pixels": batch})[0])
            sys.stdout.write(f"{name}  {manifest['labels'][row.argmax()]}  {row.max():.3f}\n")
        except Exception as error:  # noqa: BLE001 (the others are answered nevertheless)
            failed = True
            sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
    sys.exit(failed)
