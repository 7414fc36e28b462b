"""The site file: what one host of a fleet is, where its things are, whom it talks to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, ValidationError, model_validator

from acme_fleet.errors import FleetError
from acme_fleet.fleet import Fleet
from acme_fleet.hardware import Name, Settings, mistakes

Port = Annotated[int, Field(ge=1, le=65535)]
Endpoint = Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-]+:\d{1,5}$")]
Role = Literal["cloud", "edge", "device"]


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
    """

    role: Role
    name: Name = "cloud"
    fleet: Path
    state: Path
    keys: Path
    address: Annotated[str, Field(pattern=r"^[0-9A-Fa-f.:\[\]]+$")] = "0.0.0.0"
    port: Port = 9443
    local_port: Port = 9444
    upstream: Endpoint | None = None
    grace_s: PositiveFloat = 300.0

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if (self.role == "cloud") != (self.name == "cloud"):
            raise ValueError("the cloud is named `cloud`, an edge or device as in the fleet file")
        if (self.role == "cloud") != (self.upstream is None):
            raise ValueError("`upstream` is needed by an edge or device, and by no cloud")
        if self.port == self.local_port:
            raise ValueError("`port` and `local_port` must differ")
        return self

    @staticmethod
    def from_yaml(path: str | Path) -> Site:
        """Read and check a site file. Relative paths in it are relative to the file.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, ValueError) as error:
            raise FleetError(f"cannot read the site file {path}: {error}") from error
        if not isinstance(content, dict):
            raise FleetError(f"{path} holds no settings; docs/network.md shows examples")
        try:
            site = Site.model_validate(content)
        except ValidationError as error:
            raise FleetError(mistakes(error, str(path))) from error
        folder = path.parent.resolve()
        paths = {name: folder / getattr(site, name) for name in ("fleet", "state", "keys")}
        return site.model_copy(update=paths)

    @property
    def serves(self) -> bool:
        """Whether others dial this host."""
        return self.role != "device"

    @property
    def role_socket(self) -> Path:
        """Where this host's role answers."""
        return self.state / "role.sock"

    @property
    def apps_socket(self) -> Path:
        """Where Flower's processes for messages are forked."""
        return self.state / "apps.sock"

    @property
    def relay_socket(self) -> Path:
        """Where this host's role waits for the relay to those below."""
        return self.state / "relay.sock"

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
                f"{self.fleet} has no {self.role} named {self.name}; it has {', '.join(names)}"
            )
        return fleet

    def members(self, fleet: Fleet) -> list[str]:
        """Those who dial this host, as the fleet file names them."""
        if self.role == "cloud":
            return [cluster.name for cluster in fleet.clusters]
        return [d.name for c in fleet.clusters if c.name == self.name for d in c.devices]


def fingerprint(fleet: Fleet) -> str:
    """What all hosts must agree on: the fleet without the paths, which are each host's own."""
    content = fleet.model_dump(mode="json")
    for holder in (*content["clusters"], *(d for c in content["clusters"] for d in c["devices"])):
        holder["data"] = holder["data"] is not None
    for part, names in (("data", ("train", "test")), ("reference", ("checkpoint",))):
        for name in names:
            content[part][name] = content[part][name] is not None
    text = yaml.safe_dump(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
