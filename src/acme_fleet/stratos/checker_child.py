"""Runs a user's checker: a program of its own, which imports nothing of this package.

``python -I checker_child.py FILE FUNCTION`` reads a JSON list of texts a line and answers with a
JSON object: ``{"ready": true}`` first, then ``{"right": bool}`` or ``{"error": text}`` for each.
"""

import importlib.util
import json
import os
import sys


def main(file: str, function: str) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the user's code prints is no answer

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        spec = importlib.util.spec_from_file_location("checker", file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        check = getattr(module, function)
    except BaseException as error:  # noqa: BLE001
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(ready=True)
    for line in sys.stdin:
        try:
            right = check(*json.loads(line))
        except BaseException as error:  # noqa: BLE001
            answer(error=f"{type(error).__name__}: {error}")
            continue
        if isinstance(right, bool):
            answer(right=right)
        else:
            answer(error=f"it returned a {type(right).__name__}, no bool")


if __name__ == "__main__":
    main(*sys.argv[1:])
