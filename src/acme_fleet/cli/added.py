"""Commands that other packages add: the entry points ``acme_fleet.commands``."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import typer

from acme_fleet.errors import FleetError
from acme_fleet.outside import reason

ADDED = "Of other packages"
"""Group of these commands in the help text."""
_ELSEWHERE = {"reproduce": "in a clone of the project, `pip install -e research`"}


def added_names() -> list[str]:
    """Commands of packages that are installed; none of them is loaded."""
    return sorted(entry.name for entry in entry_points(group="acme_fleet.commands"))


def added_command(name: str) -> Any:
    """The command of another package, which is loaded now; none if nobody has it.

    Raises:
        FleetError: if the package is known and not installed, with how to install it.
    """
    for entry in entry_points(group="acme_fleet.commands"):
        if entry.name == name:
            try:
                loaded = entry.load()
            except ImportError as error:  # half of a package is left, or its libraries are not
                loaded = _broken(f"cannot be loaded: {reason(error)}")
            command = typer.main.get_command(loaded)
            command.name = name  # a help text lists it by this
            command.rich_help_panel = ADDED  # pyright: ignore[reportAttributeAccessIssue]
            return command
    if name in _ELSEWHERE:
        raise FleetError(f"acme {name} is in a package of its own: {_ELSEWHERE[name]}")
    return None


def _broken(why: str) -> typer.Typer:
    """A command that only says why it is none: the others' help text is not spoiled by it."""
    stands_in = typer.Typer(add_completion=False)

    @stands_in.command(
        help=why, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )
    def refuse() -> None:
        raise FleetError(f"this command of another package {why}; install that package again")

    return stands_in
