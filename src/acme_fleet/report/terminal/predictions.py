"""Answers of a device's model as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from rich.table import Table

from acme_fleet.outside import one_line
from acme_fleet.report.terminal.console import table_console
from acme_fleet_runtime.answers import Classified, Refused

_ROWS = 200  # of a table; the next answers come in another one


def print_answers(answers: Iterable[Classified | Refused], top: int | None) -> tuple[int, int]:
    """Tables of the ``top`` classes (1 unless given); returns the numbers of answers and errors."""
    console, total, refused = table_console(), 0, 0
    rest = iter(answers)
    while rows := list(islice(rest, _ROWS)):
        table = Table("input", "class", "probability")
        for answer in rows:
            label = answer.input.label
            if isinstance(answer, Refused):
                refused += 1
                table.add_row(label, f"error: {answer.reason}", "–")
                continue
            for number, (name, probability) in enumerate(answer.best(top or 1)):
                shown = label if number == 0 else ""
                table.add_row(shown, one_line(name), f"{probability:.3f}")
        console.print(table)
        total += len(rows)
    return total, refused
