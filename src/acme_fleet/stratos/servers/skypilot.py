"""SkyPilot's catalogues: one CSV file a cloud, prices in US dollars."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from acme_fleet.stratos.servers.offer import Billing, Dropped, Offer, Price
from acme_fleet.stratos.servers.table import (
    Row,
    Unusable,
    prices,
    read_offers,
    required,
    text,
    whole_accelerators,
)

_PRICES: dict[str, Billing] = {"Price": "on demand", "SpotPrice": "spot"}
COLUMNS = (
    *("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB"),
    *("Region", "GpuInfo", *_PRICES),
)


def read_skypilot(path: Path, provider: str, date: str) -> Iterator[list[Offer] | Dropped]:
    """The offers of each row, on demand and spot, or the reason why there is none.

    Args:
        path: the file. provider: the cloud's name. date: of the prices; the file has none.

    Raises:
        FleetError: if it is no such file.
    """

    def offers(row: Row, source: str) -> list[Offer]:
        instance, region = text(row, "InstanceType"), text(row, "Region")
        zone = row.get("AvailabilityZone", "").strip()
        vcpus, memory = required(row, "vCPUs"), required(row, "MemoryGiB")
        name, count, each = _accelerator(row)
        return [
            Offer(
                *(provider, instance, zone or region, name, count, each, vcpus, memory),
                *(Price(amount, "USD", date, billing), source),
                zone=zone or None,
            )
            for amount, billing in prices(row, _PRICES)
        ]

    return read_offers(path, COLUMNS, "SkyPilot catalogue", offers)


def _accelerator(row: Row) -> tuple[str | None, int, float | None]:
    """Name, number, and memory of one accelerator in GiB."""
    name, info = row["AcceleratorName"].strip(), row["GpuInfo"].strip()
    if not name:
        return None, 0, None
    count = whole_accelerators(row, "AcceleratorCount")
    if not info:
        return name, count, None
    try:
        gib = float(ast.literal_eval(info)["Gpus"][0]["MemoryInfo"]["SizeInMiB"]) / 1024
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        raise Unusable("GpuInfo cannot be read", info) from None
    if not 0 < gib < 1e6:
        raise Unusable("GpuInfo tells no possible memory", info)
    return name, count, gib
