"""``acme fleet``: what the registry knows of fleets, devices, and the artifact that each has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acme_fleet.cli.app import DELIVER, app, say

if TYPE_CHECKING:
    from acme_fleet.deploy.registry.store import Artifact, Registry

fleet = typer.Typer(help="The registry of devices and their artifacts.", no_args_is_help=True)
app.add_typer(fleet, name="fleet", rich_help_panel=DELIVER)

ENVIRONMENT = "ACME_REGISTRY"
RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        envvar=ENVIRONMENT,
        help="postgresql://…, or a file of SQLite.",
        show_default=False,
    ),
]
FleetOption = Annotated[str | None, typer.Option("--fleet", help="Its name.")]
Device = Annotated[str, typer.Argument(help="Its name.", show_default=False)]


def open_registry(where: str | None, *, make: bool = True) -> Registry | None:
    """The registry that is named, if one is; ``make`` makes its file."""
    if where is None:
        return None
    from acme_fleet.deploy.registry.store import Registry

    return Registry.open(where, make=make)


@fleet.command("list")
def fleet_list(registry: RegistryOption = None, name: FleetOption = None) -> None:
    """List every device with its newest artifact."""
    head = ("fleet", "device", "artifact", "precision", "size", "accuracy", "release", "recorded")
    newest = _opened(registry).newest(name)
    _table([head, *((each.fleet, each.device, *_row(each)) for each in newest)])


@fleet.command("show")
def fleet_show(device: Device, registry: RegistryOption = None, name: FleetOption = None) -> None:
    """Show what is known of a device's newest artifact."""
    newest = _opened(registry).history(device, name)[-1]
    manifest = newest.manifest
    for key, value in (
        ("device", f"{newest.device}, fleet {newest.fleet}"),
        ("artifact", f"{newest.number}, {newest.path}"),
        ("manifest", f"SHA-256 {newest.sha256}"),
        ("run", newest.run or "not known"),
        ("recorded", newest.recorded),
        ("runs in", f"{manifest.program.name} {manifest.program.minimum} or newer"),
        ("precision", manifest.precision),
        ("size", _size(newest)),
        *((f"accuracy, {one.data}", f"{one.artifact:.3f}") for one in manifest.accuracy),
        ("classes", ", ".join(manifest.labels) or "none: it writes"),
        *(("release", f"{number} on {site}") for site, number in newest.releases),
    ):
        say(f"{key:22} {value}")


@fleet.command("history")
def fleet_history(
    device: Device, registry: RegistryOption = None, name: FleetOption = None
) -> None:
    """List all artifacts of a device, the oldest first."""
    rows = [("artifact", "precision", "size", "accuracy", "release", "recorded")]
    _table([*rows, *map(_row, _opened(registry).history(device, name))])


@fleet.command("diff")
def fleet_diff(
    device: Device,
    old: Annotated[int | None, typer.Argument(help="Number of an artifact.")] = None,
    new: Annotated[int | None, typer.Argument(help="Number of an artifact.")] = None,
    registry: RegistryOption = None,
    name: FleetOption = None,
) -> None:
    """Compare two artifacts of a device: those that are numbered, or the two newest."""
    from acme_fleet.deploy.registry.store import changes
    from acme_fleet.errors import FleetError

    history = _opened(registry).history(device, name)
    last = len(history)
    if last < 2:
        raise FleetError(f"{device} has one artifact; there is no other to compare it with")
    first, second = (old or max(1, last - 1)), (new or last)
    for number in (first, second):
        if not 1 <= number <= last:
            raise FleetError(f"{device} has artifacts 1 to {last}, and not {number}")
    rows = changes(history[first - 1], history[second - 1])
    _table([("", f"artifact {first}", f"artifact {second}"), *rows])


@fleet.command("mirror")
def fleet_mirror(
    to: Annotated[str, typer.Option(help="MLflow's URI: http://…, or sqlite:///mlflow.db.")],
    registry: RegistryOption = None,
    name: FleetOption = None,
) -> None:
    """Enter artifacts that it lacks into MLflow's model registry: names, tags and paths."""
    from acme_fleet.deploy.registry.mirror import NEWEST, mirror

    entered = mirror(_opened(registry).artifacts(name), to)
    for version in entered:
        say(f"entered {version}")
    say(f"{len(entered)} new; the alias {NEWEST} is each device's last artifact")


def _opened(where: str | None) -> Registry:
    from acme_fleet.errors import FleetError

    found = open_registry(where, make=False)
    if found is None:
        raise FleetError(f"name a registry with --registry, or in the environment's {ENVIRONMENT}")
    return found


def _row(each: Artifact) -> tuple[str, ...]:
    accuracy = next((f"{one.artifact:.3f}" for one in each.manifest.accuracy[-1:]), "–")
    placed = [f"{number} ({Path(site).name})" for site, number in each.releases[-1:]]
    return (
        *(str(each.number), each.manifest.precision, _size(each), accuracy),
        *(placed[0] if placed else "–", each.recorded),
    )


def _size(each: Artifact) -> str:
    from acme_fleet.report.words import bytes_text

    return bytes_text(each.manifest.size_bytes)


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())
