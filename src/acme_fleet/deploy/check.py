"""Whether a host can be started: its site file, its fleet, its data and its keys."""

from __future__ import annotations

from pathlib import Path

from acme_fleet.deploy import keys
from acme_fleet.deploy.site import Site
from acme_fleet.errors import FleetError
from acme_fleet.fleet import Fleet


def checked(path: Path, role: str) -> tuple[Site, Fleet]:
    """The host of a site file, and its fleet.

    Raises:
        FleetError: naming what is wrong or missing, and what would be right.
    """
    site = Site.from_yaml(path)
    if site.role != role:
        raise FleetError(
            f"{path}: role: this host is a {site.role}; say `acme up {site.role}` or correct the "
            f"role (got {role!r})"
        )
    fleet = site.load_fleet()
    for place, data in site.reads(fleet):
        if not data.exists():
            raise FleetError(f"{site.fleet}: {place}: there is no file or folder {data}")
    needed = [keys.CA]
    needed += [keys.SERVER, keys.SERVER_KEY] if site.serves else []
    needed += [keys.NODE_KEY] if site.upstream else []
    keys.require(site.keys, needed, f"{path}: keys")
    if site.serves:
        keys.check_server(site.keys, f"{path}: keys")
        keys.public_keys(site.keys, site.members(fleet))
    return site, fleet
