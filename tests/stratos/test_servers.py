"""Readers of price lists: every row gives an offer or a reason."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from acme_fleet.errors import FleetError
from acme_fleet.stratos.request import PriceList
from acme_fleet.stratos.servers.catalogue import (
    in_dollars,
    keep_known,
    keep_wanted,
    need_offers,
    read_catalogue,
)
from acme_fleet.stratos.servers.hardware import SHIPPED, read_hardware
from acme_fleet.stratos.servers.machines import read_machines
from acme_fleet.stratos.servers.offer import Catalogue, Dropped

_DAY = datetime.date(2026, 1, 1)
_HEAD = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,"
    "Region,AvailabilityZone,Arch"
)
_INFO = "\"{'Gpus': [{'Name': 'T4', 'Count': 4.0, 'MemoryInfo': {'SizeInMiB': 16384}}]}\""
_GOOD = f"g4,T4,4.0,48.0,192.0,{_INFO},3.9,1.2,us-east-1,use1-az1,x86_64"
_MACHINES = """\
machines:
  - {name: desk, vcpus: 2, memory_gib: 8, per_hour: 0.1, currency: EUR, date: 2026-02-03}
  - {name: box, accelerator: L4, accelerators: 1, vcpus: 8, memory_gib: 32, per_hour: 0,
     date: 2026-02-03}
"""


def skypilot(tmp_path: Path, *rows: str, head: str = _HEAD) -> Catalogue:
    path = tmp_path / "vms.csv"
    path.write_text("\n".join((head, *rows)) + "\n")
    return read_catalogue([PriceList(kind="skypilot", path=path, provider="sky", date=_DAY)])


def test_a_row_of_skypilots_is_an_offer_on_demand_and_one_on_spot(tmp_path: Path):
    catalogue = skypilot(tmp_path, _GOOD)
    assert (catalogue.rows, catalogue.dropped) == (1, [])
    demand, spot = catalogue.offers
    assert (demand.price.amount, demand.price.billing) == (3.9, "on demand")
    assert (spot.price.amount, spot.price.billing) == (1.2, "spot")
    assert (demand.price.currency, demand.price.date) == ("USD", "2026-01-01")
    assert (demand.accelerator, demand.count, demand.accelerator_gib) == ("T4", 4, 16.0)
    assert (demand.region, demand.source) == ("use1-az1", "vms.csv, line 2")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (_GOOD.replace("3.9,1.2", ","), "no price in Price or SpotPrice", ""),
        (_GOOD.replace("3.9", "free"), "Price is no number", "free"),
        (_GOOD.replace("3.9", "-1"), "Price is no number larger than 0", "-1"),
        (_GOOD.replace("3.9", "inf"), "Price is no number larger than 0", "inf"),
        (_GOOD.replace("192.0", ""), "MemoryGiB is empty", ""),
        (_GOOD.replace("g4", " "), "InstanceType is empty", ""),
        (
            _GOOD.replace("T4,4.0", "T4,0.5"),
            "a part of an accelerator: its speed is not known",
            "0.5",
        ),
        (_GOOD.replace("T4,4.0", "T4,"), "AcceleratorCount is empty", ""),
        (_GOOD.replace("16384", "1/0"), "GpuInfo cannot be read", None),
        (_GOOD.replace("16384", "-5"), "GpuInfo tells no possible memory", None),
        (_GOOD.rpartition(",")[0], "the row has another number of cells than the header", ""),
        (_GOOD + ",more", "the row has another number of cells than the header", ""),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason(tmp_path: Path, row: str, reason: str, detail):
    catalogue = skypilot(tmp_path, _GOOD, row, row)
    assert (catalogue.rows, len(catalogue.offers)) == (3, 2)
    ((told, count, first),) = catalogue.reasons()
    assert (told, count, first.source) == (reason, 2, "vms.csv, line 3")
    assert detail is None or first.detail == detail


def test_rows_and_reasons_add_up(tmp_path: Path):
    rows = [_GOOD, _GOOD.replace("3.9,1.2", ","), "x,,,1,2,,0.1,,r,,"]
    catalogue = skypilot(tmp_path, *rows)
    sources = {offer.source for offer in catalogue.offers} | {d.source for d in catalogue.dropped}
    assert catalogue.rows == len(sources) == 3


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            _HEAD.replace("Price,Spot", "Cost,Spot"),
            "is no SkyPilot catalogue: it has no column Price",
        ),
        (_HEAD.replace("Arch", "Price"), "the column Price stands twice"),
        ("", "its columns are none"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, head: str, words: str):
    with pytest.raises(FleetError, match=words):
        skypilot(tmp_path, _GOOD, head=head)


def test_a_missing_file_is_named(tmp_path: Path):
    entry = PriceList(kind="aws", path=tmp_path / "no.csv", provider="aws", date=_DAY)
    with pytest.raises(FleetError, match=r"AWS price list .*no\.csv: no such file"):
        read_catalogue([entry])


def test_the_list_of_aws(tmp_path: Path):
    path = tmp_path / "aws.csv"
    path.write_text(
        "instance,gpu,gpu_count,vcpu,memory,network,region,on_demand_usd_h,reserved_usd_h\n"
        "g6.xlarge,NVIDIA L4,1,4,16 GB,10 Gigabit,us-east-1,0.8,0.5\n"
        "p4de.24xlarge,NVIDIA A100,8,96,1152 GiB,x,us-east-1,27.4,\n"
        "g6f.large,NVIDIA L40,0.125,2,8 GB,x,us-east-1,0.2,\n"
        "g6.xlarge,NVIDIA L4,1,4,much,x,us-east-1,0.8,0.5\n"
    )
    entry = PriceList(kind="aws", path=path, provider="aws", date=_DAY)
    catalogue = read_catalogue([entry])
    told = [(o.accelerator, o.count, o.price.amount, o.price.billing) for o in catalogue.offers]
    assert told == [
        ("L4", 1, 0.8, "on demand"),
        ("L4", 1, 0.5, "reserved"),
        ("A100-80GB", 8, 27.4, "on demand"),
    ]
    assert [row.reason for row in catalogue.dropped] == [
        "a part of an accelerator: its speed is not known",
        "memory is no size",
    ]


@pytest.mark.skipif("ACME_DATA" not in os.environ, reason="ACME_DATA names no folder of data sets")
def test_every_row_of_a_real_list_is_read_or_explained():
    path = Path(os.environ["ACME_DATA"]) / "cloud_prices" / "aws_gpu_prices.csv"
    entry = PriceList(kind="aws", path=path, provider="aws", date=_DAY)
    catalogue = read_catalogue([entry])
    sources = {offer.source for offer in catalogue.offers} | {d.source for d in catalogue.dropped}
    assert catalogue.rows == len(sources) == 1157


def machines(tmp_path: Path, text: str = _MACHINES) -> Catalogue:
    path = tmp_path / "machines.yaml"
    path.write_text(text)
    return read_catalogue([PriceList(kind="machines", path=path)])


def test_own_machines_and_prices_in_another_currency(tmp_path: Path):
    catalogue = machines(tmp_path)
    assert [offer.price.currency for offer in catalogue.offers] == ["EUR", "USD"]
    in_dollars(catalogue, {"EUR": 1.1})
    assert [offer.price.amount for offer in catalogue.offers] == pytest.approx([0.11, 0.0])
    catalogue = machines(tmp_path)
    in_dollars(catalogue, {})
    assert [offer.instance for offer in catalogue.offers] == ["box"]
    assert catalogue.dropped == [
        Dropped("machines.yaml, desk", "usd_per has no rate for the price's currency", "EUR")
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: box", "name: desk", "desk stands twice"),
        ("accelerators: 1, ", "", "an accelerator has a name and a number"),
        ("per_hour: 0.1, ", "", r"machines\.0\.per_hour: is missing"),
        ("currency: EUR", "currency: euro", r"machines\.0\.currency"),
        ("name: desk", "nam: desk", "did you mean name"),
    ],
)
def test_a_wrong_file_of_machines(tmp_path: Path, old: str, new: str, words: str):
    path = tmp_path / "machines.yaml"
    path.write_text(_MACHINES.replace(old, new))
    with pytest.raises(FleetError, match=words):
        read_machines(path)


def test_what_is_not_wanted_or_not_known_is_counted(tmp_path: Path):
    unknown = _GOOD.replace("T4", "Abacus").replace("g4", "g9")
    cpu = "x,,,1,2,,0.1,,us-east-1,use1-az1,"
    far = _GOOD.replace("use1-az1", "euc1-az1")
    catalogue = skypilot(tmp_path, _GOOD, unknown, cpu, far)
    keep_wanted(catalogue, ["use1*"], ["on demand"])
    keep_known(catalogue, read_hardware(SHIPPED), [])
    assert [offer.instance for offer in need_offers(catalogue)] == ["g4"]
    assert {reason: count for reason, count, _ in catalogue.reasons()} == {
        "the region is not among regions": 2,
        "the contract is not among billing": 2,
        "the accelerator is not in the table of hardware": 1,
        "a server without accelerator and without calibration": 1,
    }
    with pytest.raises(FleetError, match=r"regions: no server is in 'mars'; .* use1-az1"):
        keep_wanted(catalogue, ["mars"], ["on demand"])
    keep_wanted(catalogue, [], ["reserved"])
    with pytest.raises(FleetError, match="no server is left of 4 rows: 3 × the contract is not"):
        need_offers(catalogue)


def test_a_table_of_hardware_adds_accelerators(tmp_path: Path):
    path = tmp_path / "hardware.yaml"
    entry = "{names: [Abacus], memory_gib: 1, tflops: 0.1, gb_per_s: 2}"
    path.write_text(f"accelerators: [{entry}]")
    hardware = read_hardware(SHIPPED, path)
    assert hardware["Abacus"].tflops == 0.1
    assert hardware["T4"].memory_gib == 16
    path.write_text(f"accelerators: [{entry}, {entry}]")
    with pytest.raises(FleetError, match="Abacus stands twice"):
        read_hardware(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "skypilot", "path": "a.csv"},
        {"kind": "aws", "path": "a.csv", "provider": "aws"},
        {"kind": "machines", "path": "a.yaml", "provider": "own"},
    ],
)
def test_a_price_has_a_date(settings: dict[str, str]):
    with pytest.raises(ValueError, match="provider"):
        PriceList.model_validate(settings)
