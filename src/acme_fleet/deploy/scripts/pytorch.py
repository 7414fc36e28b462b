"""Classify with this folder in PyTorch: python run.py IMAGE… or python run.py TEXT…

It needs: pip install acme-fleet pillow
"""

import json
import sys
from pathlib import Path

from transformers import pipeline

import acme_fleet  # noqa: F401 (makes the model known to transformers)

HERE = Path(__file__).parent

if __name__ == "__main__":
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    task = "text-classification" if "max_tokens" in manifest["preparation"] else None
    classify = pipeline(task or "image-classification", model=str(HERE))
    for one in sys.argv[1:]:
        best = classify(one)[0]
        sys.stdout.write(f"{one}  {best['label']}  {best['score']:.3f}\n")
