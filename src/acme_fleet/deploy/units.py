"""Units that keep a host's processes up: systemd, or Compose where there is a container engine."""

from __future__ import annotations

import sys
from pathlib import Path

from acme_fleet.deploy.site import Site
from acme_fleet.errors import FleetError


def unit(path: Path, role: str, kind: str) -> str:
    """A unit for the host of a site file.

    Raises:
        FleetError: if the site file is wrong, or of another role.
    """
    site = Site.from_yaml(path)
    if site.role != role:
        raise FleetError(f"{path} is of a host whose role is {site.role}, not {role}")
    return (_systemd if kind == "systemd" else _compose)(site, path.resolve())


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
ProtectHome=yes
ProtectSystem=strict
ReadWritePaths={site.state}

[Install]
WantedBy=multi-user.target
"""


def _compose(site: Site, path: Path) -> str:
    ports = f'\n    ports: ["{site.port}:{site.port}"]' if site.serves else ""
    # The same paths inside as outside, so that one site file serves both.
    mounts = "\n".join(
        f"      - {place}:{place}:{mode}"
        for place, mode in {
            path: "ro",
            site.fleet: "ro",
            site.keys: "ro",
            site.state: "rw",
        }.items()
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
