"""``acme keys``: makes keys and says what to copy where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from acme_fleet.deploy import keys as files
from acme_fleet.errors import FleetError
from acme_fleet.hardware import Name


def init_keys(folder: Path, hosts: Sequence[str]) -> str:
    """The authority and a certificate for each ``NAME=ADDRESS[,ADDRESS…]``; what to copy where.

    Raises:
        FleetError: if a host is malformed or has a certificate already.
    """
    servers = {}
    for host in hosts:
        name, _, addresses = host.partition("=")
        if not addresses:
            raise FleetError(f"--host {host}: write NAME=ADDRESS, for example north=10.0.0.7")
        servers[_checked(name)] = [part for part in addresses.split(",") if part]
    made = files.make_authority(folder)
    lines = [
        f"{'made' if made else 'used'} the certificate authority in {folder}; keep "
        f"{folder / files.CA_KEY} offline, it lets its holder pose as any server",
        f"every host: copy {folder / files.CA} into its keys folder",
    ]
    for name, addresses in servers.items():
        files.make_server(folder, folder / name, addresses)
        lines.append(
            f"{name}: copy {folder / name / files.SERVER} and {files.SERVER_KEY} into its keys "
            f"folder; for {', '.join(addresses)}"
        )
    return "\n".join(lines)


def device_key(folder: Path, name: str) -> str:
    """A key for a device, or for an edge towards the cloud; what to copy where.

    Raises:
        FleetError: if there is one already.
    """
    own = folder / _checked(name)
    files.make_node(own)
    return (
        f"{name}: {own / files.NODE_KEY} goes into its keys folder, beside {files.CA}, and nowhere "
        f"else (best made there)\n"
        f"its server: copy {own / files.NODE_PUBLIC} into the keys folder of the edge that {name} "
        f"dials (of the cloud, if {name} is an edge) as {files.PEERS}/{name}.pub"
    )


def _checked(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise FleetError(f"{name!r} is not a name of a fleet file") from error
