"""A new fleet file, from an example or from what somebody has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from acme_fleet.cli.app import CUSTOMISE, app, say

if TYPE_CHECKING:
    from acme_fleet.starting.new import Have

EXAMPLE = Path(__file__).parents[1] / "demo.yaml"
_SHOWN = 20  # of what cannot be read


@app.command(rich_help_panel=CUSTOMISE)
def init(
    path: Annotated[Path, typer.Argument(help="The fleet file to write (YAML).")] = Path(
        "fleet.yaml"
    ),
    images: Annotated[
        Path | None,
        typer.Option(help="Images: a folder with a folder a class, a .parquet or .npz file."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Texts: JSON Lines with labels, answers or messages.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A data set of images on the Hugging Face hub, or digits.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The model to begin with: a folder, or a name on the hub.")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            help="A number, or a list such as raspberry-pi-5:4,jetson-orin-nano,door=esp32-camera; "
            "also android-phone."
        ),
    ] = None,
    template: Annotated[
        Literal["vision", "text", "assistant"] | None,
        typer.Option(help="Begin without data, or say what the texts are for."),
    ] = None,
) -> None:
    """Write a commented fleet file: the example, or one for your data, model and devices.

    \b
    acme init fleet.yaml                                     the demo's
    acme init --images photos --devices 6                    photos/CLASS/*.jpg
    acme init --text intents.jsonl --checkpoint ./minilm --devices android-phone:8
    acme init --template assistant                           places for your texts

    All images and texts are read: what cannot be is named, and the exit code is 1.
    """
    from acme_fleet.errors import FleetError

    if path.exists():
        raise FleetError(f"{path} exists already; it was not changed")
    named = {"--dataset": dataset, "--checkpoint": checkpoint, "--devices": devices}
    for option, value in named.items():
        if value is not None and not value.strip():
            raise FleetError(f"{option} is empty")
    if all(given is None for given in (images, text, template, *named.values())):
        content, broken, note = EXAMPLE.read_text(encoding="utf-8"), [], None
    else:
        from acme_fleet.starting.new import Have

        model = Path(checkpoint) if checkpoint and Path(checkpoint).exists() else checkpoint
        content, broken, note = _asked(path, Have(images, text, dataset, model, devices, template))
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise FleetError(f"cannot write {path}: {error.strerror}") from error
    say(f"wrote {path}; look at its plan with: acme check {path}")
    for each in broken[:_SHOWN]:
        say(f"cannot be read: {each}", error=True)
    if len(broken) > _SHOWN:
        say(f"… and {len(broken) - _SHOWN:,} more", error=True)
    if broken:
        say("a run refuses these; repair or remove them, then `acme check`", error=True)
    if note is not None:
        say(note, error=True)
    if broken or note:
        raise typer.Exit(1)


def _asked(path: Path, have: Have) -> tuple[str, list[str], str | None]:
    """The file's content, what cannot be read, and why its plan does not work out yet, if so."""
    from acme_fleet.errors import FleetError
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.starting.new import can_be_checked, check_works, new_fleet

    with LiveStages() as stages:
        new = new_fleet(path, have, lambda done, total: stages.stage("data", "look", done, total))
    for line in new.found.told:
        say(line)
    if not can_be_checked(new):
        return new.content, new.found.broken, None
    try:
        check_works(new)
    except FleetError as error:
        return new.content, [], f"the plan does not work out yet: {error}"
    return new.content, [], None
