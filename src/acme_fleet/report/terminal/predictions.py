"""Answers of a device's model: a table for people, or JSON Lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import islice

from rich.table import Table

from acme_fleet.inspection.predict import Classified, Refused
from acme_fleet.outside import one_line
from acme_fleet.report.terminal.run import table_console

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
            for number, (name, probability) in enumerate(_best(answer, top or 1)):
                shown = label if number == 0 else ""
                table.add_row(shown, one_line(name), f"{probability:.3f}")
        console.print(table)
        total += len(rows)
    return total, refused


def write_answers(answers: Iterable[Classified | Refused], top: int | None) -> tuple[int, int]:
    """A JSON object a line (ASCII); returns the numbers of answers and errors.

    ``file``, ``line`` and ``text`` say which input it is. ``class``, ``probability`` and
    ``probabilities`` (of all classes, or of the ``top``, largest first) follow, or ``error``.
    """
    total, refused = 0, 0
    for answer in answers:
        total += 1
        one = answer.input
        record: dict[str, object] = {"file": one.file} if one.file else {}
        if one.line:
            record["line"] = one.line
        if one.text is not None:
            record["text"] = one.text
        if isinstance(answer, Refused):
            refused += 1
            record["error"] = answer.reason
        else:
            best = dict(_best(answer, top))
            name, probability = next(iter(best.items()))
            record |= {"class": name, "probability": probability, "probabilities": best}
        sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
        sys.stdout.flush()
    return total, refused


def _best(answer: Classified, top: int | None) -> list[tuple[str, float]]:
    return list(islice(answer.probabilities.items(), top))
