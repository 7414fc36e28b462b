"""An offer: one instance type in one region at one price. Rows that are none are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Billing = Literal["on demand", "spot", "reserved", "owned"]


@dataclass(frozen=True)
class Price:
    """Money for an hour.

    Attributes:
        amount: of one whole server.
        currency: ISO 4217, such as ``USD``.
        date: of the price list, as the user gave it.
        billing: the kind of contract.
    """

    amount: float
    currency: str
    date: str
    billing: Billing


@dataclass(frozen=True)
class Offer:
    """One server at one price.

    Attributes:
        provider: the cloud, or ``own``.
        instance: the provider's name of the type.
        region: with the zone, where the list tells it.
        accelerator: the list's name; none for a server without one.
        count: accelerators of the server.
        accelerator_gib: memory of one accelerator; none where the list does not tell it.
        vcpus: virtual processors.
        memory_gib: main memory.
        price: of an hour.
        source: file and line.
        calibration: path of the calibration that was measured on this very machine.
        zone: part of the region, where the list tells it; ``region`` is the zone then.
    """

    provider: str
    instance: str
    region: str
    accelerator: str | None
    count: int
    accelerator_gib: float | None
    vcpus: float
    memory_gib: float
    price: Price
    source: str
    calibration: str | None = None
    zone: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str, float]:
        """An order that does not depend on the order of rows."""
        return (self.provider, self.instance, self.region, self.price.billing, self.price.amount)


@dataclass(frozen=True)
class Dropped:
    """A row of a list that gives no offer.

    Attributes:
        source: file and line.
        reason: the same words for all rows of a kind.
        detail: the value that is wrong; empty where it is missing.
    """

    source: str
    reason: str
    detail: str = ""


@dataclass
class Catalogue:
    """All offers that were read, and every row that gave none.

    ``rows`` counts rows of the files. A row of SkyPilot's gives up to two offers: on demand, spot.
    """

    rows: int = 0
    offers: list[Offer] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def add(self, results: Iterable[Sequence[Offer] | Dropped]) -> None:
        """Add what each row of a file gave."""
        for result in results:
            self.rows += 1
            if isinstance(result, Dropped):
                self.dropped.append(result)
            else:
                self.offers.extend(result)

    def drop(self, offer: Offer, reason: str, detail: str = "") -> None:
        """Count an offer that was read and cannot be used; the caller takes it from the offers."""
        self.dropped.append(Dropped(offer.source, reason, detail))

    def reasons(self) -> Iterator[tuple[str, int, Dropped]]:
        """Each reason with its number of rows or offers and the first example, most first."""
        counts = Counter(row.reason for row in self.dropped)
        for reason, count in counts.most_common():
            yield reason, count, next(row for row in self.dropped if row.reason == reason)
