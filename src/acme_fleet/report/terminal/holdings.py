"""Samples and classes of each device, in the terminal, before a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from acme_fleet.outside import one_line
from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.terminal.run import ROWS, print_left_out, print_warnings
from acme_fleet.report.warnings import notes, plan_warnings

if TYPE_CHECKING:
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.inspection.plan import Holding, Plan

_CLASSES = 6  # that are named


def print_holdings(fleet: Fleet, plan: Plan) -> int:
    """A row for each device, or for each cluster where there are many; then all warnings.

    Returns:
        The number of warnings.
    """
    by_device = len(plan.holdings) <= ROWS
    classes = any(own.classes for own in plan.holdings.values())  # tokens have none
    table = Table(title=f"samples{' and classes' * classes} that each device holds")
    table.add_column("device" if by_device else "cluster")
    owned = by_device and any(own.owner is not None for own in plan.holdings.values())
    if owned:
        table.add_column("whose")
    for column in ("train", "validation", "test"):
        table.add_column(column, justify="right")
    if classes:
        table.add_column("classes in train")
    if any(notes(own) for own in plan.holdings.values()):
        table.add_column("look at")
    if by_device:
        for name, own in plan.holdings.items():
            counts = (str(count) for count in (own.train, own.validation, own.test))
            whose = [one_line(own.owner or "", 40)] if owned else []
            named = [_named(own.classes)] * classes
            cells = one_line(name, 60), *whose, *counts, *named, notes(own)
            table.add_row(*cells[: len(table.columns)])
    else:
        for cluster in fleet.clusters[:ROWS]:
            held = [plan.holdings[d.name] for d in cluster.devices if d.name in plan.holdings]
            cells = _together(held, classes=classes)
            cells = f"{one_line(cluster.name, 60)}: {len(held):,} devices", *cells
            table.add_row(*cells[: len(table.columns)])
    console = table_console()
    console.print(table)
    if not by_device:
        print_left_out(console, len(fleet.clusters), "clusters")
    warnings = plan_warnings(fleet, plan)
    print_warnings(warnings)
    return len(warnings)


def _together(held: Sequence[Holding], *, classes: bool) -> tuple[str, ...]:
    if not held:
        return ("–",) * (4 + classes)
    signs = sum(bool(notes(own)) for own in held)
    return (
        _span(own.train for own in held),
        _span(own.validation for own in held),
        _span(own.test for own in held),
        *[_span(len(own.classes) for own in held)] * classes,
        f"{signs:,} of them" if signs else "",
    )


def _span(counts: Iterable[int]) -> str:
    low, *_, high = sorted([*counts] * 2)
    return f"{low} – {high}" if low < high else f"{low}"


def _named(classes: Sequence[str]) -> str:
    if not classes:
        return "–"
    names = ", ".join(one_line(name, 20) for name in classes[:_CLASSES])
    return f"{len(classes)}: {names}" + (", …" if len(classes) > _CLASSES else "")
