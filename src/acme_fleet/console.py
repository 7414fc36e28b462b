"""What the commands say, and how they end when the input is bad."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from acme_fleet.errors import AcmeError


@contextmanager
def errors_explained() -> Iterator[None]:
    """Bad input is one clear message and exit code 2, not a traceback."""
    try:
        yield
    except AcmeError as error:
        say(f"error: {error}", error=True)
        raise typer.Exit(2) from None


def say(text: str, *, error: bool = False) -> None:
    """Write a line, at once."""
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()
