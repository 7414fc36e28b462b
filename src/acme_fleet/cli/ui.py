"""``acme ui``: runs in a browser, while they work and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acme_fleet.cli.app import CUSTOMISE, app, say


@app.command(rich_help_panel=CUSTOMISE)
def ui(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Run directories, or folders of runs; runs/ without any."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8090,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ACME_TOKEN", help="Needed to see anything; made up where others can reach it."
        ),
    ] = None,
) -> None:
    """Show runs of `acme run` and `acme distill run` in a browser, live.

    \b
    acme ui runs/mine
    acme ui runs                               all runs in a folder, side by side
    acme ui runs --host 0.0.0.0                prints an address with a token
    """
    from acme_fleet.errors import FleetError
    from acme_fleet.report.live.watch import Board

    board = Board(places or [Path("runs")])
    try:
        from acme_fleet.report.live.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise FleetError(
            f"acme ui needs {error.name}: pip install -c constraints.txt 'acme-fleet[ui]'"
        ) from error
    for place in board.awaited:
        say(f"{place} is not there yet; it is shown when a run begins there")
    serve(board, host, port, token, lambda line: say(f"{line}\nCtrl-C ends it"))
