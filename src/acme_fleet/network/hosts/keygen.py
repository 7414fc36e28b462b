"""``acme keys``: makes keys and says what to copy where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acme_fleet.config.devices import check_name
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.names import instead_of, is_host

_UNCHECKED = "names were not compared with a fleet file; --fleet FILE does that"


def init_keys(folder: Path, hosts: Sequence[str], fleet: Path | None) -> str:
    """The authority and a certificate for each ``NAME=ADDRESS[,ADDRESS…]``; what to copy where.

    Args:
        folder: of the keys.
        hosts: the cloud and edges.
        fleet: a fleet file, in which the edges must be.

    Raises:
        FleetError: if a host is malformed, is not in the fleet or has a certificate already.
    """
    servers: dict[str, list[str]] = {}
    for host in hosts:
        name, addresses = _server(host)
        servers.setdefault(name, []).extend(addresses)
    edges = [] if fleet is None else [cluster.name for cluster in Fleet.from_yaml(fleet).clusters]
    if fleet is not None:
        for name in servers.keys() - {"cloud"}:
            _must_be_in(name, edges, f"--host {name}: {fleet} has no edge server of this name")
    made = certificates.make_authority(folder)
    lines = [
        f"{'made' if made else 'used'} the certificate authority in {folder}; keep "
        f"{folder / certificates.CA_KEY} offline, it lets its holder pose as any server",
        f"every host: copy {folder / certificates.CA} into its keys folder; with mutual TLS "
        f"{certificates.REVOKED} too, cloud and edges",
    ]
    for name, addresses in servers.items():
        certificates.make_server(folder, folder / name, addresses)
        lines.append(
            f"{name}: copy {folder / name / certificates.SERVER} and {certificates.SERVER_KEY} "
            f"into its keys folder; for {', '.join(addresses)}"
        )
    left = [
        name for name in ("cloud", *edges) if not (folder / name / certificates.SERVER).exists()
    ]
    if fleet is None:
        lines.append(_UNCHECKED)
    elif left:
        lines.append(f"without a certificate so far: {', '.join(left)}")
    return "\n".join(lines)


def device_key(folder: Path, name: str, fleet: Path | None) -> str:
    """A key for a device, or for an edge towards the cloud; what to copy where.

    Args:
        folder: of the keys.
        name: the device's or edge's.
        fleet: a fleet file, in which it must be.

    Raises:
        FleetError: if there is one already, or nobody of that name needs one.
    """
    if _named(name, name) == "cloud":
        raise FleetError(
            "cloud: the cloud dials nobody and has no such key; name a device or an edge server"
        )
    server = f"the edge that {name} dials (of the cloud, if {name} is an edge)"
    if fleet is not None:
        clusters = Fleet.from_yaml(fleet).clusters
        above = {device.name: f"edge {c.name}" for c in clusters for device in c.devices}
        above |= {cluster.name: "the cloud" for cluster in clusters}
        _must_be_in(name, list(above), f"{name}: {fleet} has no device or edge of this name")
        server = above[name]
    own = folder / name
    certificates.make_node(own)
    lines = [
        f"{name}: {own / certificates.NODE_KEY} goes into its keys folder, beside "
        f"{certificates.CA}, and nowhere else (best made there)",
        f"its server: copy {own / certificates.NODE_PUBLIC} into the keys folder of {server} as "
        f"{certificates.PEERS}/{name}.pub",
    ]
    return "\n".join(lines if fleet else [*lines, _UNCHECKED])


def certify(folder: Path, name: str) -> str:
    """A certificate for the key of a device or edge, which mutual TLS asks for; what to copy where.

    Args:
        folder: of the authority.
        name: the device's or edge's.

    Raises:
        FleetError: if there is no authority or public key, or there is a certificate already.
    """
    own = folder / _named(name, name)
    certificates.make_client(folder, own, name)
    return f"{name}: copy {own / certificates.NODE} into its keys folder, beside its key"


def revoke(folder: Path, name: str) -> str:
    """Shut a device or edge out, at its server or at the authority; what to do next.

    Args:
        folder: the keys of its server, or of the authority.
        name: the device's or edge's.

    Raises:
        FleetError: if the folder has nothing that lets it in.
    """
    peer = folder / certificates.PEERS / f"{_named(name, name)}.pub"
    lines = []
    if peer.exists():
        peer.rename(certificates.shut_out(folder, name))
        lines.append(f"{name}: its key is let in no more, from the next second if this host is up")
    if (folder / certificates.CA_KEY).exists() and (folder / name / certificates.NODE).exists():
        certificates.revoke(folder, folder / name)
        lines.append(
            f"{name}: copy {folder / certificates.REVOKED} into the keys folder of the cloud and "
            f"of every edge"
        )
    if not lines:
        raise FleetError(
            f"{name}: {folder} has neither {certificates.PEERS}/{name}.pub, which its server has, "
            f"nor {certificates.CA_KEY} and {name}/{certificates.NODE}, which the authority has"
        )
    return "\n".join(lines)


def _server(host: str) -> tuple[str, list[str]]:
    name, _, text = host.partition("=")
    addresses = [part for part in text.split(",") if part]
    if not addresses:
        raise FleetError(f"--host {host}: write NAME=ADDRESS, for example north=10.0.0.7")
    for address in addresses:
        if not is_host(address):
            raise FleetError(
                f"--host {host}: {address!r} is neither a host name nor an IP address; write it "
                f"without a port, for example north.example.org or 10.0.0.7"
            )
    return _named(name, f"--host {host}"), addresses


def _named(name: str, where: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise FleetError(f"{where}: {name!r} is no name of a fleet file: {error}") from error


def _must_be_in(name: str, known: Sequence[str], message: str) -> None:
    if name not in known:
        raise FleetError(f"{message}; {instead_of(name, known)}")
