"""Units that keep a host's processes up: systemd, or Compose where there is a container engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from acme_fleet.deploy.check import checked
from acme_fleet.deploy.proxy import nginx
from acme_fleet.deploy.site import Site
from acme_fleet.fleet import Fleet


def unit(path: Path, role: str, kind: str) -> str:
    """A unit for the host of a site file, if it could be started.

    Raises:
        FleetError: as the start would.
    """
    site, fleet = checked(path, role)
    if kind == "compose":
        return _compose(site, fleet, path.resolve())
    if site.serves:
        nginx()  # a container has its own
    return _systemd(site, path.resolve())


def _systemd(site: Site, path: Path) -> str:
    command = f"{Path(sys.executable).with_name('acme')} up {site.role} --config {path}"
    return f"""\
# /etc/systemd/system/acme-{site.name}.service
[Unit]
Description=acme-fleet {site.role} {site.name}
After=network-online.target
Wants=network-online.target

[Service]
User=acme
ExecStart={command}
Restart=on-failure
RestartSec=5
TimeoutStopSec=60
KillMode=mixed
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectHome=read-only
ProtectSystem=strict
ReadWritePaths={site.state}

[Install]
WantedBy=multi-user.target
"""


def _compose(site: Site, fleet: Fleet, path: Path) -> str:
    ports = f'\n    ports: ["{site.port}:{site.port}"]' if site.serves else ""
    # The same paths inside as outside, so that one site file serves both.
    read = [path, site.fleet, site.keys, *(data for _, data in site.reads(fleet))]
    mounts = "\n".join(
        f"      - {json.dumps(f'{place}:{place}:{mode}')}"
        for place, mode in {**dict.fromkeys(read, "ro"), site.state: "rw"}.items()
    )
    return f"""\
# compose.yaml; the image has acme-fleet[flower] and nginx, see docs/network.md
services:
  acme-{site.name}:
    image: acme-fleet:latest
    command: ["acme", "up", "{site.role}", "--config", "{path}"]
    init: true
    restart: on-failure
    stop_grace_period: 60s
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]{ports}
    volumes:
{mounts}
"""
