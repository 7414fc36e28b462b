"""Go on with texts by this folder alone: python run.py TEXT…  (or --chat TEXT…)

It needs: pip install onnxruntime numpy tokenizers, and for --chat jinja2
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE, MOST = Path(__file__).parent, 32


def written(prompt, session, ends):
    """The most probable tokens behind those of a prompt."""
    ports = session.get_inputs()[2:]
    shapes = [[1, *(s if isinstance(s, int) else 0 for s in port.shape[1:])] for port in ports]
    state = [np.zeros(shape, np.float32) for shape in shapes]
    new, seen = list(prompt), 0
    for _ in range(MOST):
        seen += len(new)
        inputs = {"input_ids": np.array([new]), "attention_mask": np.ones((1, seen), np.int64)}
        inputs |= {port.name: value for port, value in zip(ports, state, strict=True)}
        logits, *state = session.run(None, inputs)
        new = [int(np.asarray(logits)[0, -1].argmax())]
        if new[0] in ends:
            return
        yield new[0]


def chat(text, special):
    """A user's words by the chat template, up to where the answer begins."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = made.from_string((HERE / "chat_template.jinja").read_text(encoding="utf-8"))
    says = [{"role": "user", "content": text}]
    return template.render(messages=says, add_generation_prompt=True, **special)


if __name__ == "__main__":
    texts = [text for text in sys.argv[1:] if text != "--chat"]
    if not texts:
        sys.stderr.write("usage: python run.py [--chat] TEXT…\n")
        sys.exit(2)
    rule = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))["preparation"]
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact at int8
    session, failed = onnxruntime.InferenceSession(HERE / "model.onnx", options), False
    for text in texts:
        try:
            if "--chat" in sys.argv:
                asked = chat(text, rule["special_tokens"])
                prompt = tokenizer.encode(asked, add_special_tokens=False).ids
            else:
                prompt = [n for n in tokenizer.encode(text).ids if n not in rule["ends"]]
            numbers = list(written(prompt, session, rule["ends"]))
            parted = " | " if "--chat" in sys.argv else ""
            sys.stdout.write(f"{text}{parted}{tokenizer.decode(numbers)}\n")
        except Exception as error:  # noqa: BLE001 (the others are answered nevertheless)
            failed = True
            sys.stderr.write(f"{text!r}: {' '.join(str(error).split())}\n")
    sys.exit(failed)
