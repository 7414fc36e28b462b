"""Runs a user's function: a program of its own, which imports nothing of this package.

``python -P user_child.py FILE FUNCTION`` reads a JSON list of arguments a line and answers with a
JSON object: ``{"value": null}`` when it is loaded, then ``{"value": …}`` or ``{"error": text}`` for
each line.
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
        sys.path.insert(0, os.path.dirname(file))  # its own modules beside it  # noqa: PTH120
        spec = importlib.util.spec_from_file_location("user_function", file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        call = getattr(module, function)
    except BaseException as error:  # noqa: BLE001
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(value=None)
    for line in sys.stdin:
        try:
            answer(value=call(*json.loads(line)))
        except BaseException as error:  # noqa: BLE001
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
