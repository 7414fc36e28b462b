"""The command itself, and what its parts have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from acme_fleet.cli.added import ADDED, added_command, added_names
from acme_fleet.failures import called, explain, prepare_output, say

__all__ = ["CUSTOMISE", "DELIVER", "DEPLOY", "DISTIL", "HOSTS", "app", "called", "say"]

CUSTOMISE = "Customise a fleet"
DEPLOY = "Use and deploy the models"
DELIVER = "Deliver them to devices"
DISTIL = "Distil a language model"
HOSTS = "Many hosts, and this one"
_GROUPS = (CUSTOMISE, DEPLOY, DELIVER, DISTIL, HOSTS, ADDED)
"""Groups of commands in the help text, in this order."""

# ClickException: its module depends on typer's version.
_USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


@contextmanager
def _explained() -> Iterator[None]:
    """Any failure of any command is told in a line of ours; typer tells wrong options itself."""
    prepare_output()
    try:
        yield
    except (typer.Exit, typer.Abort, _USAGE_ERROR):
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        raise typer.Exit(explain(error)) from None


def _place(command: Any) -> int:
    """A command's group, as a place in the help text."""
    panel = command.rich_help_panel
    return _GROUPS.index(panel) if panel in _GROUPS else len(_GROUPS)


class _Command(TyperGroup):
    """The whole command line: its help, its options and its commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """See :class:`TyperGroup`; group by group, and those of other packages come last."""
        own = {name: _place(self.commands[name]) for name in super().list_commands(ctx)}
        return list(dict.fromkeys([*sorted(own, key=own.__getitem__), *added_names()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """See :class:`TyperGroup`."""
        return super().get_command(ctx, cmd_name) or added_command(cmd_name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See :class:`TyperGroup`."""
        with _explained():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """See :class:`TyperGroup`."""
        with _explained():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Command, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


Host = Annotated[str, typer.Option(help="Others than this machine's need a token.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="ACME_TOKEN", help="Requests must send it.", show_default=False),
]
"""Options of a command that answers HTTP requests."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"acme-fleet {version('acme-fleet')}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done; 1 done in part; 2 wrong input, or no memory or disk for it; "
    "70 a bug of acme-fleet, with a traceback to report; 130 interrupted."
)
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One large Transformer in, one small model for every device of a fleet out."""
