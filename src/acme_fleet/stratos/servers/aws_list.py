"""Price lists of AWS accelerator instances: one row an instance type and region."""

from __future__ import annotations

import re
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

_PRICES: dict[str, Billing] = {"on_demand_usd_h": "on demand", "reserved_usd_h": "reserved"}
COLUMNS = ("instance", "gpu", "gpu_count", "vcpu", "memory", "region", *_PRICES)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?(?:GB|GiB)")  # AWS means GiB by GB
_LARGER = {"p4de": "A100-80GB", "p3dn": "V100-32GB"}
"""Instance types whose accelerators have twice the memory, under the same name in the list."""


def read_aws_list(path: Path, provider: str, date: str) -> Iterator[list[Offer] | Dropped]:
    """The offers of each row, on demand and reserved, or the reason why there is none.

    Arguments and errors as for :func:`read_skypilot`.
    """

    def offers(row: Row, source: str) -> list[Offer]:
        instance, region = text(row, "instance"), text(row, "region")
        listed = text(row, "gpu").removeprefix("NVIDIA ").removesuffix(" Blackwell")
        name = _LARGER.get(instance.partition(".")[0], listed)
        count, vcpus = whole_accelerators(row, "gpu_count"), required(row, "vcpu")
        memory = _MEMORY.fullmatch(text(row, "memory"))
        if memory is None:
            raise Unusable("memory is no size", row["memory"])
        return [
            Offer(
                *(provider, instance, region, name, count, None, vcpus, float(memory[1])),
                *(Price(amount, "USD", date, billing), source),
            )
            for amount, billing in prices(row, _PRICES)
        ]

    return read_offers(path, COLUMNS, "AWS price list", offers)
