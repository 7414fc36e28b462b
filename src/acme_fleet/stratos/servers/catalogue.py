"""All offers of a task's price lists, with what is known of each one's hardware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from acme_fleet.errors import FleetError
from acme_fleet.outside import listed, one_line
from acme_fleet.stratos.request import PriceList
from acme_fleet.stratos.servers.aws_list import read_aws_list
from acme_fleet.stratos.servers.hardware import Accelerator
from acme_fleet.stratos.servers.machines import read_machines
from acme_fleet.stratos.servers.offer import Catalogue, Offer
from acme_fleet.stratos.servers.skypilot import read_skypilot


def read_catalogue(lists: Sequence[PriceList]) -> Catalogue:
    """Read every list; no row is left out without a reason.

    Raises:
        FleetError: naming the file that cannot be read.
    """
    catalogue = Catalogue()
    for entry in lists:
        if entry.kind == "machines":
            catalogue.add(read_machines(entry.path))
            continue
        read = read_skypilot if entry.kind == "skypilot" else read_aws_list
        assert entry.provider is not None
        assert entry.date is not None
        catalogue.add(read(entry.path, entry.provider, entry.date.isoformat()))
    return catalogue


def in_dollars(catalogue: Catalogue, usd_per: Mapping[str, float]) -> None:
    """Turn prices of other currencies into US dollars; an offer without a rate is dropped."""
    kept = []
    for offer in catalogue.offers:
        price = offer.price
        rate = 1.0 if price.currency == "USD" else usd_per.get(price.currency)
        if rate is None:
            catalogue.drop(offer, "usd_per has no rate for the price's currency", price.currency)
        else:
            amount = price.amount * rate
            kept.append(replace(offer, price=replace(price, amount=amount, currency="USD")))
    catalogue.offers[:] = kept


def keep_wanted(catalogue: Catalogue, regions: Sequence[str], billing: Iterable[str]) -> None:
    """Drop the offers outside the regions and kinds of contract that a task allows.

    Args:
        catalogue: is changed.
        regions: patterns such as ``eu-*``; none allows all.
        billing: kinds of contract; machines that one owns always stay.

    Raises:
        FleetError: if a pattern is of no region, naming those that there are.
    """
    known = sorted({offer.region for offer in catalogue.offers})
    for pattern in regions:
        if known and not any(fnmatchcase(region, pattern) for region in known):
            raise FleetError(
                f"regions: no server is in {one_line(pattern, 60)!r}; the price lists have "
                f"{listed(known, 30)}"
            )
    allowed, kept = {*billing, "owned"}, []
    for offer in catalogue.offers:
        if regions and not any(fnmatchcase(offer.region, pattern) for pattern in regions):
            catalogue.drop(offer, "the region is not among regions", offer.region)
        elif offer.price.billing not in allowed:
            catalogue.drop(offer, "the contract is not among billing", offer.price.billing)
        else:
            kept.append(offer)
    catalogue.offers[:] = kept


def keep_known(
    catalogue: Catalogue, hardware: Mapping[str, Accelerator], calibrated: Iterable[str]
) -> None:
    """Drop the offers of whose speed nothing is known, neither measured nor by a data sheet.

    Args:
        catalogue: is changed.
        hardware: data sheets by name.
        calibrated: accelerators that a calibration was measured on.
    """
    measured, kept = set(calibrated), []
    for offer in catalogue.offers:
        name = offer.accelerator
        if offer.calibration is not None or name in measured:
            kept.append(offer)
        elif name is None:
            catalogue.drop(offer, "a server without accelerator and without calibration")
        elif name not in hardware:
            catalogue.drop(offer, "the accelerator is not in the table of hardware", name)
        else:
            kept.append(offer)
    catalogue.offers[:] = kept


def need_offers(catalogue: Catalogue) -> list[Offer]:
    """The offers in an order that does not depend on the order of rows.

    Raises:
        FleetError: if there is none, with the reasons why rows were dropped.
    """
    if not catalogue.offers:
        told = "; ".join(f"{count} × {reason}" for reason, count, _ in catalogue.reasons())
        raise FleetError(f"no server is left of {catalogue.rows} rows: {told or 'no rows'}")
    return sorted(catalogue.offers, key=lambda offer: offer.key)
