"""Is this machine ready for a run?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from acme_fleet.cli.app import HOSTS, app, say

_STYLES = {"fine": "green", "note": "yellow", "optional": "dim", "wrong": "red"}


@app.command(rich_help_panel=HOSTS)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, and nothing else.")] = False,
) -> None:
    """Look at torch, processor, memory, disk and extras: what is off, and the remedy.

    The exit code is 1 if something would stop or spoil a run.
    """
    from rich.table import Table
    from rich.text import Text

    from acme_fleet.inspection.doctor import examine_machine
    from acme_fleet.report.terminal.console import table_console

    checks = list(examine_machine(Path.cwd()))
    if as_json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table("", "state", "found", "remedy")
        for check in checks:
            state = Text(check.state, _STYLES[check.state])
            table.add_row(check.name, state, check.told, check.remedy or "")
        table_console().print(table)
    if any(check.state == "wrong" for check in checks):
        raise typer.Exit(1)
