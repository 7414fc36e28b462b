"""Go on with texts by this folder alone: python run.py TEXT…  (or --chat TEXT…)

It needs: pip install llama-cpp-python
"""

import sys
from pathlib import Path

from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    texts = [text for text in sys.argv[1:] if text != "--chat"]
    if not texts:
        sys.stderr.write("usage: python run.py [--chat] TEXT…\n")
        sys.exit(2)
    model = Llama(str(Path(__file__).parent / "model.gguf"), n_ctx=0, verbose=False)
    for text in texts:
        if "--chat" in sys.argv:
            messages = [{"role": "user", "content": text}]
            answer = model.create_chat_completion(messages, max_tokens=64, temperature=0.0)
            sys.stdout.write(f"{text}  {answer['choices'][0]['message']['content']}\n")
        else:
            answer = model.create_completion(text, max_tokens=32, temperature=0.0)
            sys.stdout.write(f"{text}{answer['choices'][0]['text']}\n")
