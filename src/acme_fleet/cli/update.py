"""A fleet after its run: devices that join, leave or change, and data that drift."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acme_fleet.cli.app import CUSTOMISE, app, called, say
from acme_fleet.cli.customise import RunDir, run_and_tell
from acme_fleet.cli.hosts import need_flower

if TYPE_CHECKING:
    from acme_fleet.runs.journal import Observer
    from acme_fleet.runs.summary import Summary


@app.command(rich_help_panel=CUSTOMISE)
def update(
    run_dir: RunDir,
    fleet_file: Annotated[
        Path,
        typer.Option("--fleet", help="The fleet file as it is to be.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option(help="The new run directory; must be new or empty.", show_default=False)
    ],
    refresh: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Let a device train again though nothing changed, or all; may be given again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a finished run that of a changed fleet; only what changed is computed.

    \b
    acme update runs/mine --fleet new.yaml --out runs/mine-2
    acme update runs/mine --fleet new.yaml --out runs/mine-2 --refresh cam-1

    Devices that did not change keep their folders bit for bit. Nothing in RUN_DIR is changed.
    """
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.runs.directory import RunDirectory

    many_hosts = RunDirectory.open(run_dir).identity.exists()
    if many_hosts:
        need_flower()
        from acme_fleet.network.hosts.run import update_over_flower as update_run
    else:
        from acme_fleet.updates.update import update as update_run
    fleet = Fleet.from_yaml(fleet_file)

    def work(stages: Observer) -> Summary:
        return update_run(run_dir, fleet, out, refresh=refresh or (), observer=stages)

    run_and_tell(out, work, many_hosts=many_hosts)


@app.command(rich_help_panel=CUSTOMISE)
def drift(
    run_dir: RunDir,
    device: Annotated[str, typer.Option(help="Name of the device.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(help="Its new data, of the form of the fleet's data.", show_default=False),
    ],
) -> None:
    """Compare a device's new data with its old ones, and measure what a refresh would gain.

    \b
    acme drift runs/mine --device cam-1 --data data/cam-1-june

    It computes on this machine alone, writes nothing and sends nothing.
    """
    from acme_fleet.report.terminal.drifts import print_drift
    from acme_fleet.runs.directory import FLEET
    from acme_fleet.updates.drift import measure_drift

    found = measure_drift(run_dir, device, data)
    print_drift(device, found)
    if found.gains or found.gains is None:
        words = ["update", str(run_dir), "--fleet", "NEW.yaml", "--out", "NEW-RUN"]
        say(
            f"to refresh: a copy of {run_dir / FLEET} with {device}'s `data: {data}`, then: "
            f"{called()} {shlex.join([*words, '--refresh', device])}"
        )
