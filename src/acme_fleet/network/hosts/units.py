"""Units that keep a host's processes up: systemd, or Compose where there is a container engine."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from pathlib import Path
from pwd import getpwuid
from shlex import quote

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.preflight import checked
from acme_fleet.network.hosts.proxy import nginx
from acme_fleet.network.hosts.site import Site


def unit(path: Path, role: str, kind: str) -> str:
    """A unit for the host of a site file, if it could be started.

    It runs as who owns the private key, which nobody else can read.

    Raises:
        FleetError: as the start would; if the owner of key and state is not one user other than
            root, or the address is none that a container has.
    """
    site, fleet = checked(path, role)
    owner = _owner(site, path)
    if kind == "compose":
        if not ipaddress.ip_address(site.address).is_unspecified:
            raise FleetError(
                f"{path}: address: a container does not have the host's addresses; remove it, and "
                f"write the address before the port in the unit's `ports` (got {site.address!r})"
            )
        return _compose(site, fleet, path.resolve(), owner)
    if site.serves:
        nginx()  # a container has its own
    return _systemd(site, path.resolve(), owner)


def _owner(site: Site, path: Path) -> os.stat_result:
    """The user that runs a host."""
    key = site.keys / (certificates.SERVER_KEY if site.serves else certificates.NODE_KEY)
    owner = key.stat()
    if (site.keys / certificates.CA_KEY).exists():
        raise FleetError(
            f"{path}: keys: {site.keys} holds the authority's {certificates.CA_KEY}, which no "
            f"host may have; keep it elsewhere, and here what `acme keys` says"
        )
    if owner.st_uid == 0:
        raise FleetError(
            f"{path}: keys: {key} belongs to root; give the keys to the user who is to run this "
            f"host: `useradd --system acme` and `chown -R acme: {quote(str(site.keys))}`"
        )
    if not site.state.is_dir() or site.state.stat().st_uid != owner.st_uid:
        raise FleetError(
            f"{path}: state: there is no folder {site.state} of the user whose the keys are; "
            f"`install -d -m 700 -o {_name(owner.st_uid)} {quote(str(site.state))}`"
        )
    return owner


def _name(user: int) -> str:
    try:
        return getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _systemd(site: Site, path: Path, owner: os.stat_result) -> str:
    program = Path(sys.executable).with_name("acme")
    return f"""\
# /etc/systemd/system/acme-{site.name}.service
[Unit]
Description=acme-fleet {site.role} {site.name}
After=network-online.target
Wants=network-online.target

[Service]
User={_name(owner.st_uid)}
ExecStart={_word(program, dollar="$")} up {site.role} --config {_word(path)}
Environment={_word(f"HOME={site.state}", dollar="$")}
Restart=on-failure
RestartSec=5
TimeoutStopSec=60
KillMode=mixed
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectHome=read-only
ProtectSystem=strict
ReadWritePaths={_word(site.state, dollar="$")}

[Install]
WantedBy=multi-user.target"""


def _word(text: str | Path, dollar: str = "$$") -> str:
    """A word as systemd reads it; it has variables in command lines only."""
    return json.dumps(str(text), ensure_ascii=False).replace("%", "%%").replace("$", dollar)


def _compose(site: Site, fleet: Fleet, path: Path, owner: os.stat_result) -> str:
    ports = f'\n    ports: ["{site.port}:{site.port}"]' if site.serves else ""
    # The same paths inside as outside, so that one site file serves both.
    read = [path, site.fleet, site.keys, *(data for _, data in site.reads(fleet))]
    mounts = "\n".join(
        f"      - {{type: bind, source: {_text(place)}, target: {_text(place)}{mode}}}"
        for place, mode in {**dict.fromkeys(read, ", read_only: true"), site.state: ""}.items()
    )
    return f"""\
# compose.yaml; the image has acme-fleet[flower] and nginx, see docs/network.md
services:
  acme-{site.name}:
    image: acme-fleet:latest
    command: ["acme", "up", "{site.role}", "--config", {_text(path)}]
    user: "{owner.st_uid}:{owner.st_gid}"
    environment: {{HOME: {_text(site.state)}}}
    init: true
    restart: on-failure
    stop_grace_period: 60s
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]{ports}
    volumes:
{mounts}"""


def _text(path: Path) -> str:
    """A path in a Compose file, which has variables."""
    return json.dumps(str(path), ensure_ascii=False).replace("$", "$$")
