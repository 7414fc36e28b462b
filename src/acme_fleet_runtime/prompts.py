"""Prompts of a language model, from the command line or files; and its answers for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.inputs import STDIN, Skipped, find_inputs
from acme_fleet_runtime.outside import one_line

_OBJECTS = (".jsonl", ".json", ".ndjson")


def read_prompts(arguments: Iterable[Path], texts: Sequence[str], *, lines: bool) -> list[str]:
    """Prompts in the order of the arguments, the given texts last.

    Args:
        arguments: prompts; with ``lines`` files that hold one a line. ``-`` is standard input.
        texts: prompts, whatever they look like.
        lines: arguments are files.

    Raises:
        FleetError: for an argument that is a file's name without ``lines``, a file that cannot be
            read or that holds JSON, or no prompt at all.
    """
    prompts: list[str] = []
    for argument in arguments:
        name = str(argument)
        if lines and argument.suffix in _OBJECTS:
            raise FleetError(
                f"{one_line(name, 200)} holds JSON; --lines takes plain texts, a prompt a line"
            )
        if not lines and name != STDIN:
            _check_no_file(argument)
            prompts.append(name)
            continue
        for one in find_inputs([argument], [], Skipped(), images=False, lines=lines):
            if one.error or one.text is None:
                raise FleetError(one.error or f"{one.label} is no text")
            prompts.append(one.text)
    prompts += texts
    if not prompts:
        raise FleetError("there is no prompt in what was named")
    return prompts


HINT = "the model has a chat template: with --chat a prompt is what a user says"


def shown(prompt: str, text: str) -> str:
    """A prompt and what was written behind it; an answer that is empty says so."""
    return f"{prompt.rstrip()} | {text.strip() or '(ended at once)'}"


def _check_no_file(argument: Path) -> None:
    name = one_line(str(argument), 200)
    try:
        kind = "a folder" if argument.is_dir() else "a file" if argument.exists() else None
    except (OSError, ValueError):  # too long for a name: a text
        return
    if kind is not None:
        raise FleetError(
            f"{name} is {kind}, and a language model takes prompts: --lines reads a file with a "
            f"prompt a line, --text takes these words as a prompt"
        )
