"""Go on with texts by this folder alone: python run.py TEXT…

It needs: pip install acme-fleet
"""

import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import acme_fleet  # noqa: F401 (makes the model known)

HERE = Path(__file__).parent

if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.stderr.write("usage: python run.py TEXT…\n")
        sys.exit(2)
    model: Any = AutoModelForCausalLM.from_pretrained(HERE)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    for text in sys.argv[1:]:
        inputs = tokenizer(text, return_tensors="pt")
        written = model.generate(inputs["input_ids"], max_new_tokens=32, do_sample=False)[0]
        sys.stdout.write(tokenizer.decode(written, skip_special_tokens=True) + "\n")
