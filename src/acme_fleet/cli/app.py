"""The command itself, and what its parts have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from acme_fleet.errors import AcmeError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"acme-fleet {version('acme-fleet')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One large Transformer in, one small model for every device of a fleet out."""


@contextmanager
def errors_explained(options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Bad input is one clear message and exit code 2, not a traceback.

    ``options`` of a command that has no fleet file, by the keys that errors name.
    """
    try:
        yield
    except AcmeError as error:
        told = str(error)
        for key, option in (options or {}).items():
            told = told.replace(key, option)
        say(f"error: {told}", error=True)
        raise typer.Exit(2) from None


def say(text: str, *, error: bool = False) -> None:
    """Write a line, to standard error if it tells of one."""
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()
