"""The site file: what one host of a fleet is, where its things are, whom it talks to."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from acme_fleet.config.base import Settings, mistakes, read_settings
from acme_fleet.config.devices import Name
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.shorthand import profiles_of
from acme_fleet.errors import FleetError
from acme_fleet.network.flower.channel import LONGEST_PATH
from acme_fleet.network.flower.frames import BELL
from acme_fleet.network.hosts.names import instead_of, is_host, is_ip
from acme_fleet.outside import resolved


def _check_endpoint(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not is_host(host) or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("write HOST:PORT of the server, for example north.example.org:9443")
    return value


def _check_ip(value: str) -> str:
    if not is_ip(value):
        raise ValueError("write an IP address of this host, or 0.0.0.0 for all that it has")
    return value


Port = Annotated[int, Field(ge=1, le=65535)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
Role = Literal["cloud", "edge", "device"]


_OF_SERVERS = ("address", "port", "local_port", "grace_s")


class Site(Settings):
    """One host.

    Attributes:
        role: what runs here.
        name: the edge's or device's name in the fleet file.
        fleet: the fleet file; the same on every host but for paths.
        state: folder of everything that this host keeps.
        keys: folder with ``ca.crt``, and what ``acme keys`` says must be here.
        address, port: where a cloud or edge is reached from outside.
        local_port: of the SuperLink, on the loopback interface only.
        upstream: ``host:port`` of the server that an edge or device dials.
        grace_s: how long a peer below may be out of reach before it is given up.
        mutual_tls: who dials shows a certificate too; the same on both ends of a line.
    """

    role: Role
    name: Name = "cloud"
    fleet: Path
    state: Path
    keys: Path
    address: Annotated[str, AfterValidator(_check_ip)] = "0.0.0.0"
    port: Port = 9443
    local_port: Port = 9444
    upstream: Endpoint | None = None
    grace_s: PositiveFloat = 300.0
    mutual_tls: bool = False
    _file: Path = PrivateAttr(default=Path("site"))

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        cloud = self.role == "cloud"
        if cloud and self.name != "cloud":
            raise ValueError(
                f"name: a cloud has none; remove it, or correct the role (got {self.name!r})"
            )
        if not cloud and self.name == "cloud":
            raise ValueError(f"name: write the name that this {self.role} has in the fleet file")
        if cloud and self.upstream is not None:
            raise ValueError(f"upstream: a cloud dials nobody; remove it (got {self.upstream!r})")
        if not cloud and self.upstream is None:
            above = "cloud" if self.role == "edge" else "edge"
            raise ValueError(
                f"upstream: is missing; write HOST:PORT of the {above} that this {self.role} dials"
            )
        if self.port == self.local_port:
            raise ValueError(f"local_port: must differ from port (got {self.port} for both)")
        for name in _OF_SERVERS if self.role == "device" else ():
            if name in self.model_fields_set:
                raise ValueError(f"{name}: is for servers, and nobody dials a device; remove it")
        return self

    @staticmethod
    def from_yaml(path: str | Path) -> Site:
        """Read and check a site file. Relative paths in it are relative to the file.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        path = Path(path)
        content = read_settings(path, "site file", "docs/network.md shows an example")
        try:
            site = Site.model_validate(content)
        except ValidationError as error:
            raise FleetError(mistakes(error, str(path), Site)) from error
        folder = resolved(path.parent)
        paths = {name: folder / getattr(site, name) for name in ("fleet", "state", "keys")}
        site = site.model_copy(update=paths)
        site._file = path
        if not site.fleet.is_file():
            raise FleetError(
                f"{path}: fleet: there is no file {site.fleet}; write the fleet file's path, "
                f"absolute or from {folder}"
            )
        _check_paths(site, path)
        return site

    @property
    def serves(self) -> bool:
        """True if others dial this host."""
        return self.role != "device"

    @property
    def role_socket(self) -> Path:
        """The socket of this host's role."""
        return self.state / "role.sock"

    @property
    def apps_socket(self) -> Path:
        """The socket of the process that forks Flower's processes for messages."""
        return self.state / "apps.sock"

    @property
    def relay_socket(self) -> Path:
        """The socket where this host's role waits for the relay to those below."""
        return self.state / "relay.sock"

    @property
    def bell_socket(self) -> Path:
        """The socket at which the relay rings when a message for a node is there."""
        return self.state / BELL

    @property
    def nodes_file(self) -> Path:
        """The file of names and nodes at this host's SuperLink."""
        return self.state / "nodes.json"

    def load_fleet(self) -> Fleet:
        """The fleet, in which this host must have its place.

        Raises:
            FleetError: if it has not.
        """
        fleet = Fleet.from_yaml(self.fleet)
        names = {
            "cloud": ["cloud"],
            "edge": [cluster.name for cluster in fleet.clusters],
            "device": [device.name for device in fleet.devices],
        }[self.role]
        if self.name not in names:
            raise FleetError(
                f"{self._file}: name: {self.fleet} has no {self.role} of this name; "
                f"{instead_of(self.name, names)} (got {self.name!r})"
            )
        return fleet

    def members(self, fleet: Fleet) -> list[str]:
        """Those who dial this host, as the fleet file names them."""
        if self.role == "cloud":
            return [cluster.name for cluster in fleet.clusters]
        return [d.name for c in fleet.clusters if c.name == self.name for d in c.devices]

    def reads(self, fleet: Fleet) -> list[tuple[str, Path]]:
        """Paths that this host reads beside its own folders, by their place in the fleet file."""
        named: list[tuple[str, object]] = [
            *((f"device_types.{name}", path) for name, path in profiles_of(self.fleet).items()),
        ]
        holders = (*fleet.clusters, *fleet.devices)
        own = next((each.data for each in holders if each.name == self.name), None)
        if own is not None:
            named.append((f"{self.name}: data", own))
        else:
            named += [("data.train", fleet.data.train), ("data.test", fleet.data.test)]
        if self.role == "cloud":
            named.append(("data.public", fleet.data.public))
            named.append(("reference.checkpoint", fleet.reference.checkpoint))
        return [
            (place, path)
            for place, value in named
            for path in (value if isinstance(value, list) else [value])
            if isinstance(path, Path)  # text names a data set or a model of a hub
        ]


def _check_paths(site: Site, path: Path) -> None:
    """Refuse folders that nginx or a socket cannot have."""
    for name in ("state", "keys") if site.serves else ():
        if odd := re.search(r'["$\\\x00-\x1f]', str(getattr(site, name))):
            raise FleetError(
                f"{path}: {name}: choose a path without quotes, dollar signs, backslashes and "
                f"line breaks, which nginx would read otherwise (got {odd[0]!r} in it)"
            )
    if len(os.fsencode(site.relay_socket)) > LONGEST_PATH:
        raise FleetError(
            f"{path}: state: {site.state} is too long a path for the sockets in it; choose one "
            f"of at most {LONGEST_PATH - len('/relay.sock')} bytes"
        )


def fingerprint(fleet: Fleet) -> str:
    """The fingerprint that all hosts must agree on: of the fleet without paths."""
    content = fleet.model_dump(mode="json")
    for holder in (*content["clusters"], *(d for c in content["clusters"] for d in c["devices"])):
        holder["data"] = holder["data"] is not None
    for part, names in (("data", ("train", "test")), ("reference", ("checkpoint",))):
        for name in names:
            content[part][name] = content[part][name] is not None
    if isinstance(fleet.data.public, Path):
        content["data"]["public"] = True
    text = yaml.safe_dump(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
