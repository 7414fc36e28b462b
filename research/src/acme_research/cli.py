"""``acme reproduce``, the command that this package adds to ``acme``."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from acme_fleet.cli.app import say
from acme_fleet.errors import FleetError
from acme_research import stories

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def reproduce(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="fig7a, say; without it, all are listed.")
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke, small, real or full.")] = "smoke",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Run a table or figure of the paper again (a clone of the project has the stories).

    Further options are handed on to the story:
    --data FOLDER of the data sets, for all scales but smoke;
    --references FOLDER with dinov2-small, the reference at scale real;
    --out FOLDER of finished pieces (runs/reproduce);
    --results FOLDER of figures and pictures (the clone's own);
    --checkpoint NAME or ./FOLDER of a ViT that is there already, for the reference, or of the
    teacher of a story of Stratos;
    --device cpu or cuda; --jobs N processes, --threads N of each.
    Some rivals need the extras bench and simulation, and are left out without them.
    """
    if name is None:
        for story, summary in stories.read_stories().items():
            say(f"{story:<15} {summary}")
        return
    options = ["--scale", scale, "--seeds", str(seeds), *context.args]
    raise typer.Exit(run_story(name, options))


def run_story(name: str, options: Sequence[str]) -> int:
    """Run a story in a process of its own; returns its exit status.

    Raises:
        FleetError: if there is no such story.
    """
    if name not in stories.NAMES:
        raise FleetError(f"there is no story {name}; choose one of {', '.join(stories.NAMES)}")
    command = [sys.executable, "-m", "acme_research.stories", name, *options]
    with subprocess.Popen(command) as story:
        while True:
            try:
                return story.wait()
            except KeyboardInterrupt as stop:
                # Ctrl-C has reached the story too, which ends its processes; SIGTERM has not.
                if stop.args and stop.args[0] != signal.SIGINT:
                    story.send_signal(signal.SIGINT)
