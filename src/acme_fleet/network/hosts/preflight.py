"""Checks before a host starts: site file, fleet, data, keys, its ports, and the server above."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from pathlib import Path

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.site import Site

_FREE_S, _DIAL_S = 15.0, 5.0


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
    needed = [certificates.CA]
    needed += [certificates.SERVER, certificates.SERVER_KEY] if site.serves else []
    needed += [certificates.NODE_KEY] if site.upstream else []
    if site.mutual_tls:
        needed += [certificates.REVOKED] if site.serves else []
        needed += [certificates.NODE] if site.upstream else []
    certificates.require(site.keys, needed, f"{path}: keys")
    if site.mutual_tls and site.serves:
        certificates.check_revoked(site.keys, f"{path}: keys")
    if site.mutual_tls and site.upstream:
        certificates.check_client(site.keys, f"{path}: keys")
    if site.serves:
        certificates.check_server(site.keys, f"{path}: keys")
        certificates.public_keys(site.keys, site.members(fleet))
    return site, fleet


def wait_until_free(path: Path, site: Site) -> None:
    """Wait until both ports of a server are free, as those of a host that has just been stopped.

    Raises:
        FleetError: if another program keeps one.
    """
    deadline = time.monotonic() + _FREE_S
    for name, address in (("port", site.address), ("local_port", "127.0.0.1")):
        port = getattr(site, name)
        while number := _why_not(address, port):
            if time.monotonic() > deadline or number != errno.EADDRINUSE:
                wrong, remedy = {
                    errno.EADDRINUSE: (name, "stop what does, or write another"),
                    errno.EADDRNOTAVAIL: ("address", "write one of this host, or remove it"),
                }.get(number, (name, "write another"))
                raise FleetError(
                    f"{path}: {wrong}: cannot listen on {address} port {port}: "
                    f"{os.strerror(number)}; {remedy}"
                )
            time.sleep(0.5)


def _why_not(address: str, port: int) -> int | None:
    """The number of the error by which one cannot listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, port), family=family).close()
    except OSError as error:
        return error.errno
    return None


def check_upstream(path: Path, site: Site) -> str:
    """Why the server above cannot be reached now; empty if it can.

    Raises:
        FleetError: if it shows a certificate that is not of this host's authority, or the
            authority's certificate cannot be read.
    """
    assert site.upstream is not None
    host, _, port = site.upstream.rpartition(":")
    authority = site.keys / certificates.CA
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise FleetError(f"{path}: keys: cannot use {authority}: {error}") from error
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_DIAL_S) as plain:
            context.wrap_socket(plain, server_hostname=host.strip("[]")).close()
    except ssl.SSLCertVerificationError as error:
        raise FleetError(
            f"{path}: upstream: {site.upstream} shows a certificate that {authority} does not "
            f"vouch for: {error.verify_message}; take the {certificates.CA} of its authority, or "
            f"make its certificate for this address"
        ) from error
    except OSError as error:
        return error.strerror or str(error)
    return ""
