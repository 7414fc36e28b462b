"""``report.html``: one self-contained page about a run, for the people who own the fleet.

Nothing is loaded from elsewhere: text, tables, inline SVG, and one script that sorts and searches,
the only one that the page's policy lets run. matplotlib and jinja2 are imported only when a page
is written.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from acme_fleet.outside import one_line
from acme_fleet.report.overhead import overhead_table
from acme_fleet.report.page.device_tables import (
    device_table,
    language_table,
    rivals_sizes,
    rivals_table,
)
from acme_fleet.report.page.events import TimeLine, link_flows, stage_table, time_line
from acme_fleet.report.page.facts import (
    MOST_LISTED,
    MOST_ROWS,
    Facts,
    class_facts,
    cluster_facts,
    confusion,
    confusions,
    listed_devices,
    tabled_devices,
)
from acme_fleet.report.page.glossary import GLOSSARY
from acme_fleet.report.page.pictures import Example, matrix_picture
from acme_fleet.report.words import (
    brief_duration_text,
    bytes_text,
    duration_text,
    energy_text,
    header_text,
    percent_text,
    share_text,
)
from acme_fleet.runs.atomic import replacing
from acme_fleet.runs.events import Event, FaultEvent
from acme_fleet.runs.summary import Summary

if TYPE_CHECKING:
    import jinja2

_MOST_LOST = 40  # names in one list
_MOST_CLUSTERS = 24  # one by one
_MOST_BYTES = 400_000  # of all pictures of matrices
_SCRIPT = Path(__file__).with_name("page.js")
_TABLES = {
    "cluster-table": [
        *("cluster", "devices", "right %", "lowest %", "reference %", "smallest kB"),
        *("largest kB", "backbone", "candidates that fit"),
    ],
    "class-table": [
        *("class", "devices", "training samples", "test samples", "right %"),
        "taken for",
    ],
}
"""The columns of tables that are sorted, searched and, on a phone, stacked, beside the devices'."""
_TEXTS = ("device", "cluster", "fits", "backbone", "class", "taken for")
"""Columns of texts; the others hold numbers."""


def write_report(
    summary: Summary,
    events: Sequence[Event],
    path: Path,
    examples: Mapping[str, Sequence[Example]] | None = None,
) -> None:
    """Write the page.

    Args:
        summary: everything that the run measured.
        events: those of ``events.jsonl``; none is fine.
        path: the HTML file; it is overwritten.
        examples: test samples to show, by device.

    Raises:
        WriteError: if it cannot be written.
    """
    from acme_fleet.personalization.disclosure import what_leaves
    from acme_fleet.report.page import canvas, plots

    writes = any(device.language for device in summary.devices)
    leaving = what_leaves(summary.personalization, writes=writes)
    tabled, listed = tabled_devices(summary.devices), listed_devices(summary.devices)
    table = device_table(tabled, summary) if tabled else None
    color = cluster_colors(summary, canvas.CLUSTER_COLORS)
    line, flows = time_line(summary, events), link_flows(events)
    kinds, script = kinds_sent(summary, [one.kind for one in leaving]), _SCRIPT.read_text()
    page = (
        environment()
        .get_template("page.html.jinja")
        .render(
            summary=summary,
            facts=Facts.of(summary),
            took=_took(summary, line),
            aggregated=len(summary.devices) > MOST_LISTED,
            device_table=table,
            language_table=language_table(listed),
            rivals_table=rivals_table(listed),
            rivals_sizes=rivals_sizes(listed),
            listed=listed,
            cluster_rows=cluster_facts(summary),
            examples=examples or {},
            glossary=GLOSSARY,
            labels=_TABLES | {"device-table": table.columns if table else []},
            texts=_TEXTS,
            script=Markup(script),
            script_hash=script_hash(script),
            leaving=leaving,
            kinds_sent=kinds,
            sizes_sent=_sizes_sent(summary, kinds),
            color=color,
            theme=canvas.THEME,
            dark_colors=canvas.DARK_COLORS,
            figures=plots.figures(summary, flows, line, color),
            pictures=_pictures(summary, color),
            graph_of=header_graph,
            header_text=header_text,
            effective_peers=effective_peers,
            most_rows=MOST_ROWS,
            most_listed=MOST_LISTED,
            most_lost=_MOST_LOST,
            most_clusters=_MOST_CLUSTERS,
            stages=stage_table(summary, events),
            line=line,
            engine=overhead_table(summary, events),
            faults=[event for event in events if isinstance(event, FaultEvent)],
            **_classes(summary),
        )
    )
    with replacing(path) as file:
        file.write_text(page, encoding="utf-8", errors="replace")


def script_hash(script: str) -> str:
    """Of the page's script, as its content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _took(summary: Summary, line: TimeLine | None) -> str:
    took = brief_duration_text(summary.duration_s)
    if line is None:
        return took if summary.took_s is not None else f"{took}, all stages one after the other"
    if not line.pauses:
        return took
    pauses = len(line.pauses)
    left_out = duration_text(sum(seconds for _, seconds in line.pauses))
    what = "a pause" if pauses == 1 else f"{pauses} pauses"
    return f"{took}, without {what} of {left_out}"


def _sizes_sent(summary: Summary, kinds: Sequence[str]) -> dict[str, list[int]]:
    """Bytes of every message of a kind that any device sent."""
    return {
        kind: [size for sent in summary.sent.values() for size in sent.get(kind, ())]
        for kind in kinds
    }


def _classes(summary: Summary) -> dict[str, Any]:
    """Classes and mistakes, for the templates."""
    names, counts = confusion(summary.devices)
    return {
        "class_rows": class_facts(summary.devices),
        "confusion_names": names,
        "confusion_counts": counts,
        "confusion_pairs": confusions(names, counts),
        "confusion_picture": matrix_picture(counts, "#4a7fb5") if len(names) > 12 else None,
    }


def _pictures(summary: Summary, color: Mapping[str, str]) -> dict[str, str]:
    """Similarity matrices that are too large for a table; those of near devices alone are none."""
    found: dict[str, str] = {}
    for cluster in summary.clusters[:_MOST_CLUSTERS]:
        large = len(cluster.similarity) > 12 and not cluster.columns
        if large and sum(map(len, found.values())) < _MOST_BYTES:
            found[cluster.name] = matrix_picture(cluster.similarity, color[cluster.name])
    return found


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, compiled once in a process, and the filters that they use."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("acme_fleet.report.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, words in (
        *(("bytes", bytes_text), ("seconds", duration_text)),
        *(("energy", energy_text), ("share", share_text), ("milliseconds", _milliseconds)),
        ("percent", percent_text),
    ):
        environment.filters[name] = lambda value, words=words: words(value).replace(" ", "\u00a0")
    environment.filters["line"] = lambda text: one_line(text, 500)
    environment.filters["mean"] = fmean
    return environment


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else duration_text(seconds)


def kinds_sent(summary: Summary, expected: Sequence[str]) -> list[str]:
    """Types of messages that devices sent: those expected, then those of an older version."""
    known = dict.fromkeys(expected)
    for kinds in summary.sent.values():
        known |= dict.fromkeys(kinds)
    return list(known)


def cluster_colors(summary: Summary, palette: Sequence[str]) -> dict[str, str]:
    """Each cluster's colour; the same in all figures."""
    named = [name for c in summary.clusters for name in (c.edge, c.name)]
    names = dict.fromkeys(named + [d.cluster for d in summary.devices])
    return dict(zip(names, itertools.cycle(palette), strict=False))


def effective_peers(similarity: Sequence[Sequence[float]]) -> float:
    """Mean over receivers of 1/Σ ŵ²: to how many devices, itself included, one listens."""
    return fmean(1 / (sum(w * w for w in row) or 1.0) for row in similarity) if similarity else 0.0


# --- the header's graph -----------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """A cell drawn as boxes and wires, in SVG units.

    Attributes:
        boxes: class, x, y, width, height, label.
        wires: class, path data.
        width, height: of the whole drawing.
    """

    boxes: list[tuple[str, float, float, float, float, str]]
    wires: list[tuple[str, str]]
    width: float
    height: float


def header_graph(genotype: Mapping[str, Any], *, tokens: bool = False) -> Graph | None:
    """Lay out a cell; none if the genotype is not understood.

    Every node has a row of its own, so its output can run to the right without crossing a box,
    and every input has a lane of its own in the gutter before its column.
    """
    try:
        blocks = [list(zip(b["inputs"], b["operations"], strict=True)) for b in genotype["blocks"]]
        columns = [0, 0]
        for block in blocks:
            columns.append(1 + max(columns[source] for source, _ in block))
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if not blocks:
        return None
    rows = [0, len(blocks) + 1, *range(1, len(blocks) + 1)]
    used = {source for block in blocks for source, _ in block}
    y = [28 + 60 * row for row in rows]
    lanes = [0] * (max(columns) + 2)
    gutter = 24 + 9 * max(2 * columns.count(column) for column in range(1, max(columns) + 1))
    x = [0 if column == 0 else 10 + column * (112 + gutter) for column in range(len(lanes))]
    boxes, wires = [], []
    for node, label in enumerate(("last hidden state", "penultimate state")):
        kind = "source" if node in used else "source unused"
        boxes.append((kind, 0, y[node] - 15, 116, 30, label))
    for node, block in enumerate(blocks, 2):
        left = x[columns[node]]
        boxes.append(("block", left, y[node] - 27, 112, 54, ""))
        boxes.append(("sum", left + 90, y[node] - 10, 20, 20, "+"))
        for slot, (source, operation) in enumerate(block):
            top = y[node] - 23 + 25 * slot
            boxes.append(("operation", left + 4, top, 84, 21, str(operation)))
            start, lane = x[columns[source]] + (112, 116)[source < 2], lanes[columns[node]]
            lanes[columns[node]] += 1
            turn = left - 14 - 9 * lane
            kind = ("last", "penultimate")[source] if source < 2 else "inner"
            wires.append((kind, f"M{start} {y[source]}H{turn}V{top + 10.5}H{left + 4}"))
    ends = [node for node in range(2, len(y)) if node not in used]
    loose = [(x[columns[node]] + 112, y[node]) for node in ends]
    _add_tail(boxes, wires, x[-1], loose, tokens=tokens)
    return Graph(boxes, wires, x[-1] + 266, max(y) + 28)


def _add_tail(
    boxes: list[tuple[str, float, float, float, float, str]],
    wires: list[tuple[str, str]],
    left: float,
    ends: Sequence[tuple[float, float]],
    *,
    tokens: bool,
) -> None:
    """Loose ends, concatenated, pooled, joined with the [CLS] token, classified.

    Of a language model: brought to the hidden size, added to each token's state, for its head.
    """
    top, bottom = min(y for _, y in ends), max(y for _, y in ends)
    middle = (top + bottom) / 2
    wires += [("inner", f"M{x} {y}H{left}") for x, y in ends]
    boxes.append(("upright", left, top - 26, 24, bottom - top + 52, "concat"))
    boxes.append(
        ("source", left + 106, middle - 60, 84, 26, "hidden state" if tokens else "[CLS] token")
    )
    wires.append(("last", f"M{left + 148} {middle - 34}V{middle - 15}"))
    reach = left + 24
    labels = ("linear", "add", "head") if tokens else ("pool", "join", "linear")
    for offset, width, label in zip((42, 106, 210), (46, 84, 56), labels, strict=True):
        wires.append(("inner", f"M{reach} {middle}H{left + offset}"))
        boxes.append(("tail", left + offset, middle - 15, width, 30, label))
        reach = left + offset + width
