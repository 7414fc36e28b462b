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
    if not sys.argv[1:]:
        sys.stderr.write("usage: python run.py IMAGE… or python run.py TEXT…\n")
        sys.exit(2)
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    task = "text-classification" if "max_tokens" in manifest["preparation"] else None
    classify = pipeline(task or "image-classification", model=str(HERE))
    failed = False
    for one in sys.argv[1:]:
        try:
            best = classify(one)[0]
            sys.stdout.write(f"{one}  {best['label']}  {best['score']:.3f}\n")
        except Exception as error:  # noqa: BLE001 (the others are answered nevertheless)
            failed = True
            sys.stderr.write(f"{one}: {' '.join(str(error).split())}\n")
    sys.exit(failed)
