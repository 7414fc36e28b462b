"""Many hosts: what each of them runs, and its keys."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from acme_fleet.cli.app import HOSTS, app, say
from acme_fleet.errors import FleetError

keys = typer.Typer(help="Certificates and keys of a fleet of many hosts.", no_args_is_help=True)
app.add_typer(keys, name="keys", rich_help_panel=HOSTS)

KeysDir = Annotated[Path, typer.Option("--keys", help="Folder of keys.")]
FleetOption = Annotated[
    Path | None, typer.Option("--fleet", help="Fleet file that must have these names.")
]
Role = Literal["cloud", "edge", "device"]
Units = Literal["systemd", "compose"]


def need_flower() -> None:
    """Raise FleetError if what many hosts need is not installed."""
    if find_spec("cryptography") is None or find_spec("flwr") is None:
        raise FleetError("install Flower's part first: pip install 'acme-fleet[flower]'")


@app.command(rich_help_panel=HOSTS)
def up(
    role: Annotated[Role, typer.Argument(help="What this host is.", show_default=False)],
    config: Annotated[Path, typer.Option(help="The host's site file.", show_default=False)],
    show: Annotated[
        Units | None, typer.Option("--print", help="Print a unit for this host instead.")
    ] = None,
) -> None:
    """Run what this host of a fleet needs, in the foreground, until Ctrl-C."""
    need_flower()
    from acme_fleet.network.hosts.units import unit
    from acme_fleet.network.hosts.up import up as run_host

    if show is not None:
        say(unit(config, role, show))
    else:
        run_host(config, role, say)


@keys.command("init")
def keys_init(
    host: Annotated[
        list[str],
        typer.Option(help="NAME=ADDRESS[,ADDRESS…] of the cloud and of each edge."),
    ],
    keys_dir: KeysDir = Path("keys"),
    fleet: FleetOption = None,
) -> None:
    """Make the certificate authority and the servers' certificates, and say what goes where."""
    need_flower()
    from acme_fleet.network.hosts.keygen import init_keys

    say(init_keys(keys_dir, host, fleet))


@keys.command("device")
def keys_device(
    name: Annotated[str, typer.Argument(help="The device or edge.", show_default=False)],
    keys_dir: KeysDir = Path("keys"),
    fleet: FleetOption = None,
) -> None:
    """Make the key of a device, or of an edge for the cloud, and say what goes where."""
    need_flower()
    from acme_fleet.network.hosts.keygen import device_key

    say(device_key(keys_dir, name, fleet))


@keys.command("certify")
def keys_certify(
    name: Annotated[str, typer.Argument(help="The device or edge.", show_default=False)],
    keys_dir: KeysDir = Path("keys"),
) -> None:
    """Make the certificate of a device or edge for mutual TLS, at the authority."""
    need_flower()
    from acme_fleet.network.hosts.keygen import certify

    say(certify(keys_dir, name))


@keys.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="The device or edge.", show_default=False)],
    keys_dir: KeysDir = Path("keys"),
) -> None:
    """Shut a device or edge out, at its server and at the authority."""
    need_flower()
    from acme_fleet.network.hosts.keygen import revoke

    say(revoke(keys_dir, name))
