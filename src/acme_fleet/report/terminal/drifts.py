"""Drift of a device's data as tables for people."""

from __future__ import annotations

from rich.table import Table

from acme_fleet.outside import one_line
from acme_fleet.report.intervals import wilson
from acme_fleet.report.terminal.console import table_console
from acme_fleet.tasks.base import Evaluation
from acme_fleet.updates.drift import Drift

_CLASSES = 10


def print_drift(device: str, drift: Drift) -> None:
    """Accuracies with intervals, the change in the data, and the gain of a refresh."""
    console = table_console()
    title = f"{one_line(device, 60)}: {drift.task.metric}, with Wilson's 95 % interval"
    table = Table("model", "data", drift.task.metric, "samples", title=title)
    for model, data, result in (
        ("shipped", "old, test", drift.old),
        ("shipped", "new, all", drift.new),
        ("shipped", "new, test part", drift.before),
        ("refreshed", "new, test part", drift.after),
        ("refreshed", "old, test", drift.after_old),
    ):
        table.add_row(model, data, _score(drift, result), str(result.count))
    console.print(table)
    shares = Table("class", "old", "new", "change", title="shares of classes")
    for shift in drift.classes[:_CLASSES]:
        change = f"{100 * (shift.new - shift.old):+.1f} points"
        shares.add_row(one_line(shift.name, 60), f"{shift.old:.1%}", f"{shift.new:.1%}", change)
    console.print(shares)
    if (more := len(drift.classes) - _CLASSES) > 0:
        console.print(f"… and {more:,} classes that changed less", highlight=False)
    if drift.distance is not None and drift.within is not None:
        console.print(
            f"features (Wasserstein, {drift.rows} samples each): old to new {drift.distance:.3g}, "
            f"within the old {drift.within:.3g}",
            highlight=False,
        )
    console.print(
        f"a refresh on the new data alone: {100 * (drift.after.score - drift.before.score):+.1f} "
        f"points on new data, {100 * (drift.after_old.score - drift.old.score):+.1f} on old",
        highlight=False,
    )
    for line in verdict(drift):
        console.print(line, highlight=False, soft_wrap=True)


def verdict(drift: Drift) -> list[str]:
    """An answer to the two questions: has the data changed, and is a refresh worth it?"""
    told = ", ".join(f"{name} (p {_p(p)})" for name, p in drift.chances.items())
    changed = " and ".join(drift.changed)
    level = "each counts below 0.05 divided by their number"
    lines = []
    if drift.chances:
        head = f"the data has changed: {changed}" if changed else "no change beyond chance is shown"
        lines.append(f"{head}; compared: {told}; {level}")
    gain, count = 100 * (drift.after.score - drift.before.score), drift.after.count
    if drift.gains:
        lines.append(f"a refresh is shown to gain (p {_p(drift.gain_chance or 0)})")
    elif drift.gains is not None:
        lines.append(
            f"a refresh is not shown to gain: {gain:+.1f} points on {count} samples may be chance "
            f"(p {_p(drift.gain_chance or 0)})"
        )
    return lines


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _score(drift: Drift, result: Evaluation) -> str:
    if not drift.task.whole_hits:
        return f"{result.score:.3f}"
    low, high = wilson(result.score, result.count)
    return f"{result.score:.3f} [{low:.3f}, {high:.3f}]"
