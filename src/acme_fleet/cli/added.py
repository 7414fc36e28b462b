"""Commands that other packages add: the entry points ``acme_fleet.commands``."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import typer

from acme_fleet.errors import FleetError

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
            command = typer.main.get_command(entry.load())
            command.name = name  # a help text lists it by this
            command.rich_help_panel = ADDED  # pyright: ignore[reportAttributeAccessIssue]
            return command
    if name in _ELSEWHERE:
        raise FleetError(f"acme {name} is in a package of its own: {_ELSEWHERE[name]}")
    return None
