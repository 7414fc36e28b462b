"""Data-sheet figures of accelerators, by the names of price lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from acme_fleet.config.base import Settings
from acme_fleet.errors import FleetError
from acme_fleet.stratos.settings_file import read_as

SHIPPED = Path(__file__).with_name("hardware.yaml")
Positive = Annotated[float, Field(gt=0, le=1e9)]


class Accelerator(Settings):
    """One kind of accelerator, by its data sheet."""

    names: Annotated[list[str], Field(min_length=1, max_length=20)]
    """Names that price lists have for it."""
    memory_gib: Positive
    """Memory in GiB."""
    tflops: Positive
    """Dense 16-bit tensor operations, in 10¹² a second; 32-bit ones where it has none."""
    gb_per_s: Positive
    """Memory bandwidth in 10⁹ bytes a second."""


class Hardware(Settings):
    """A table of accelerators."""

    accelerators: Annotated[list[Accelerator], Field(min_length=1, max_length=1000)]
    """The accelerators."""


def read_hardware(*paths: Path) -> dict[str, Accelerator]:
    """Accelerators by name; a later file's entry takes the place of an earlier one's.

    Raises:
        FleetError: naming the key that is wrong, or the name that stands twice in a file.
    """
    found: dict[str, Accelerator] = {}
    for path in paths:
        table = read_as(Hardware, path, "table of hardware", f"{SHIPPED} is an example")
        own: dict[str, Accelerator] = {}
        for entry in table.accelerators:
            for name in entry.names:
                if name in own:
                    raise FleetError(f"{path}: accelerators: {name} stands twice; remove one")
                own[name] = entry
        found |= own
    return found
