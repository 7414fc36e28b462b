"""CSV lists of servers: rows with their line, and cells that may be missing or wrong."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, read_regular, reading
from acme_fleet.stratos.servers.offer import Billing, Dropped, Offer

_MOST_BYTES = 2**28

Row = dict[str, str]


class Unusable(Exception):
    """A row gives no offer.

    Attributes:
        reason: the same words for all rows of a kind. detail: the value that is wrong.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, one_line(detail, 60)


def read_offers(
    path: Path, columns: Sequence[str], kind: str, offers: Callable[[Row, str], list[Offer]]
) -> Iterator[list[Offer] | Dropped]:
    """The offers of each row of a CSV file, or the reason why it offers nothing.

    Args:
        path: the file. columns: those that must be there; others may be.
        kind: what the file is, for errors.
        offers: of a row and its place ``FILE, line N``; raises :class:`Unusable`.

    Raises:
        FleetError: naming the file, and the columns that are missing.
    """
    with reading(f"cannot read the {kind} {path}"):
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text), strict=True)
        present = list(table.fieldnames or ())
    if missing := [name for name in columns if name not in present]:
        raise FleetError(
            f"{path} is no {kind}: it has no column {', '.join(missing)}; its columns are "
            f"{one_line(', '.join(present)) or 'none'}"
        )
    if twice := {name for name in present if present.count(name) > 1}:
        raise FleetError(f"{path}: the column {', '.join(sorted(twice))} stands twice")
    with reading(f"{path} is no CSV file"):
        rows = [(f"{path.name}, line {table.line_num}", row) for row in table]
    for source, row in rows:
        try:
            if None in row or None in row.values():
                raise Unusable("the row has another number of cells than the header")
            yield offers(row, source)
        except Unusable as row_error:
            yield Dropped(source, row_error.reason, row_error.detail)


def text(row: Row, column: str) -> str:
    """A cell that must hold text."""
    if not (value := row[column].strip()):
        raise Unusable(f"{column} is empty")
    return value


def number(row: Row, column: str) -> float | None:
    """A cell that holds a number larger than zero, or nothing."""
    if not (cell := row[column].strip()):
        return None
    try:
        value = float(cell)
    except ValueError:
        raise Unusable(f"{column} is no number", cell) from None
    if not math.isfinite(value) or value <= 0:
        raise Unusable(f"{column} is no number larger than 0", cell)
    return value


def required(row: Row, column: str) -> float:
    """A cell that must hold a number larger than zero."""
    if (value := number(row, column)) is None:
        raise Unusable(f"{column} is empty")
    return value


def whole_accelerators(row: Row, column: str) -> int:
    """A cell that must hold a number of accelerators; a part of one is refused."""
    count = required(row, column)
    if count != int(count):
        raise Unusable("a part of an accelerator: its speed is not known", f"{count:g}")
    return int(count)


def prices(row: Row, columns: Mapping[str, Billing]) -> list[tuple[float, Billing]]:
    """The prices of a row, by the columns that may hold one."""
    found: list[tuple[float, Billing]] = []
    for column, billing in columns.items():
        if (amount := number(row, column)) is not None:
            found.append((amount, billing))
    if not found:
        raise Unusable(f"no price in {' or '.join(columns)}")
    return found
