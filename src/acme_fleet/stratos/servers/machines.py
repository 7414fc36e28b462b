"""Machines that a user owns, in a YAML file of their own."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from acme_fleet.config.base import Settings
from acme_fleet.config.devices import Name
from acme_fleet.errors import FleetError
from acme_fleet.outside import resolved
from acme_fleet.stratos.servers.offer import Offer, Price
from acme_fleet.stratos.settings_file import read_as

Positive = Annotated[float, Field(gt=0, le=1e9)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class Machine(Settings):
    """One machine, or several alike."""

    name: Name
    """Name of the machine, unique in the file."""
    region: Name = "own"
    """Place, compared with ``regions`` of the task file."""
    accelerator: str | None = None
    """Name of its accelerator as in the table of hardware; none computes on the processor."""
    accelerators: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of accelerators; one of them is used."""
    accelerator_gib: Positive | None = None
    """Memory of one accelerator in GiB; none takes that of the table of hardware."""
    vcpus: Positive
    """Processor threads."""
    memory_gib: Positive
    """Main memory in GiB."""
    per_hour: Annotated[float, Field(ge=0, le=1e9)]
    """Price of an hour: electricity and wear, say; 0 is free."""
    currency: Currency = "USD"
    """ISO 4217 code of ``per_hour``."""
    date: datetime.date
    """Day that the price is of."""
    calibration: Path | None = None
    """File that ``acme distill probe`` wrote on this machine; relative to this file."""

    @model_validator(mode="after")
    def _named(self) -> Machine:
        if (self.accelerator is not None) != bool(self.accelerators):
            raise ValueError("an accelerator has a name and a number, or neither is given")
        return self


class Machines(Settings):
    """A file of machines."""

    machines: Annotated[list[Machine], Field(min_length=1, max_length=10_000)]
    """The machines."""


def read_machines(path: Path) -> list[list[Offer]]:
    """The offer of each machine.

    Raises:
        FleetError: naming the key that is wrong, or the name that stands twice.
    """
    example = "`acme distill init` writes an example"
    machines = read_as(Machines, path, "file of machines", example).machines
    names = [machine.name for machine in machines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FleetError(f"{path}: machines: {', '.join(twice)} stands twice; names are unique")
    return [[_offer(machine, path)] for machine in machines]


def _offer(machine: Machine, path: Path) -> Offer:
    measured = machine.calibration
    return Offer(
        provider="own",
        instance=machine.name,
        region=machine.region,
        accelerator=machine.accelerator,
        count=machine.accelerators,
        accelerator_gib=machine.accelerator_gib,
        vcpus=machine.vcpus,
        memory_gib=machine.memory_gib,
        price=Price(machine.per_hour, machine.currency, machine.date.isoformat(), "owned"),
        source=f"{path.name}, {machine.name}",
        calibration=None if measured is None else str(resolved(path.parent / measured)),
    )
