"""A new fleet file, from an example or from what somebody has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from acme_fleet.cli.app import CUSTOMISE, app, called, say

if TYPE_CHECKING:
    from acme_fleet.starting.have import Have
    from acme_fleet.starting.new import New

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
        Path | None,
        typer.Option(help="Texts: JSON Lines or .csv, with labels, answers or messages."),
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
            help="A number of Raspberry Pi 5 with 256 MB for a model, or a list such as "
            "android-phone:4,gateway=20MB:2. Types: raspberry-pi-5, jetson-orin-nano, "
            "android-phone, esp32-camera, or a storage, with a Pi's speed."
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
        _write(path, EXAMPLE.read_text(encoding="utf-8"))
        say(f"wrote {path}; look at its plan with: {called()} check {path}")
        return
    from acme_fleet.starting.have import Have

    model = Path(checkpoint) if checkpoint and Path(checkpoint).exists() else checkpoint
    have = Have(images, text, dataset, model, devices, template)
    have.check()
    say(f"looking at {images or text or dataset or f'the template {template}'} …")
    new = _asked(path, have)
    _write(path, new.content)
    _tell(path, new)


def _write(path: Path, content: str) -> None:
    from acme_fleet.errors import FleetError

    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise FleetError(f"cannot write {path}: {error.strerror}") from error


def _asked(path: Path, have: Have) -> New:
    """The file, its plan tried where that can be."""
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.starting.new import can_be_checked, new_fleet, tried

    with LiveStages() as stages:
        new = new_fleet(path, have, partial(stages.stage, "data", "reading"))
    return tried(new) if can_be_checked(new) else new


def _tell(path: Path, new: New) -> None:
    """Tell what was found, what was written, and what is to be done.

    Raises:
        Exit: with 1 if something cannot be read, or the plan does not work out.
    """
    from acme_fleet.starting.devices import about_devices
    from acme_fleet.starting.new import advice

    broken = new.found.broken
    for line in (*new.found.told, *about_devices(new.devices), *advice(new)):
        say(line)
    for each in broken[:_SHOWN]:
        say(f"cannot be read: {each}", error=True)
    if len(broken) > _SHOWN:
        say(f"… and {len(broken) - _SHOWN:,} more", error=True)
    if broken:
        say(f"wrote {path}")
        again = f"{called()} check {path}"
        say(f"a run refuses these; repair or remove them, then: {again}", error=True)
    elif new.problem is not None:
        say(f"wrote {path}")
        say(f"the plan does not work out yet: {new.problem}", error=True)
        say(f"change {path}, then: {called()} check {path}", error=True)
    else:
        say(f"wrote {path}; look at its plan with: {called()} check {path}")
        return
    raise typer.Exit(1)
