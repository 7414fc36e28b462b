"""``report.html``: one self-contained page about a run, for the people who own the fleet.

Nothing is loaded from elsewhere and nothing runs: text, tables and inline SVG. matplotlib and
jinja2 are imported only when a page is written.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from acme_fleet.report.summary import Summary

Event = Mapping[str, Any]


def write_report(summary: Summary, events: list[dict[str, Any]], path: Path) -> None:
    """Write the page.

    Args:
        summary: everything that the run measured.
        events: the parsed lines of ``events.jsonl``; none is fine.
        path: the HTML file; it is overwritten.
    """
    import jinja2

    from acme_fleet.report import plots

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("acme_fleet.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, words in (("bytes", bytes_text), ("seconds", duration_text), ("energy", energy_text)):
        environment.filters[name] = lambda value, words=words: words(value).replace(" ", "\u00a0")
    color = cluster_colors(summary, plots.CLUSTER_COLORS)
    line, flows = time_line(summary, events), link_flows(summary, events)
    page = environment.get_template("page.html.jinja").render(
        summary=summary,
        color=color,
        theme=plots.THEME,
        figures=plots.figures(summary, flows, line, color),
        graph_of=header_graph,
        effective_peers=effective_peers,
        stages=_stage_table(summary, events),
        line=line,
    )
    path.write_text(page, encoding="utf-8")


def cluster_colors(summary: Summary, palette: Sequence[str]) -> dict[str, str]:
    """Each cluster's colour; the same in all figures."""
    named = [name for c in summary.clusters for name in (c.edge, c.name)]
    names = dict.fromkeys(named + [d.cluster for d in summary.devices])
    return dict(zip(names, itertools.cycle(palette), strict=False))


def effective_peers(similarity: Sequence[Sequence[float]]) -> float:
    """Mean over receivers of 1/Σ ŵ²: to how many devices, itself included, one listens."""
    return fmean(1 / (sum(w * w for w in row) or 1.0) for row in similarity) if similarity else 0.0


def _stage_table(summary: Summary, events: Sequence[Event]) -> list[tuple[str, str, int, float]]:
    """Stage, who ran it, how often, seconds in all."""
    actors: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        if "stage" in event:
            actors[event["stage"]].append(str(event["actor"]))
    tiers = {"cloud": "cloud"} | {cluster.name: "edge server" for cluster in summary.clusters}
    table = []
    for stage, seconds in summary.seconds.items():
        ran = actors[stage]
        kinds = dict.fromkeys(tiers.get(actor, "device") for actor in ran)
        table.append((stage, ", ".join(kinds), len(ran), seconds))
    return table


# --- words and numbers ------------------------------------------------------------------------


def bytes_text(size: float) -> str:
    """A size as people write it, e.g. ``412 kB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"


def duration_text(seconds: float) -> str:
    """A duration as people write it, e.g. ``1 min 54 s``."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def energy_text(joules: float) -> str:
    """An energy as people write it, e.g. ``59 mJ``."""
    value, unit = (1000 * joules, "mJ") if joules < 0.0995 else (joules, "J")
    return f"{value:.2g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    """All messages of one type in one direction between a cluster's edge server and a tier."""

    tier: str
    up: bool
    kind: str
    cluster: str
    size_bytes: int
    messages: int


def link_flows(summary: Summary, events: Sequence[Event]) -> list[Flow]:
    """Bytes by link and message type, in the order of their first appearance.

    ``tier`` is ``cloud`` or ``device``: the other end of the edge server's link. Up is towards
    the cloud.
    """
    edges = {cluster.edge for cluster in summary.clusters}
    sizes: defaultdict[tuple[str, bool, str, str], list[int]] = defaultdict(list)
    for event in events:
        if "bytes" not in event:
            continue
        sender, receiver = str(event["from"]), str(event["to"])
        with_cloud = "cloud" in (sender, receiver)
        up = receiver == "cloud" if with_cloud else sender not in edges
        edge = sender if up == with_cloud else receiver
        tier = "cloud" if with_cloud else "device"
        sizes[tier, up, str(event["type"]), edge].append(int(event["bytes"]))
    return [Flow(*key, sum(found), len(found)) for key, found in sizes.items()]


@dataclass(frozen=True)
class TimeLine:
    """Who did what when. Times are seconds since the first event, without long pauses.

    Attributes:
        actors: name and cluster of each row; the cloud has no cluster.
        stages: row, name, start, seconds; the longest first.
        messages: the sender's row, time.
        pauses: time, seconds that were left out there.
        end: end of the last event.
    """

    actors: list[tuple[str, str]]
    stages: list[tuple[int, str, float, float]]
    messages: list[tuple[int, float]]
    pauses: list[tuple[float, float]]
    end: float


def time_line(summary: Summary, events: Sequence[Event]) -> TimeLine | None:
    """Order the events by actor and time; none if there are no events.

    A time in which nothing was recorded, longer than a tenth of the rest, is left out: between
    an interrupted run and its resumption there may be a night.
    """
    events = [event for event in events if "stage" in event or "bytes" in event]
    spans = sorted((_moment(e), _moment(e) + float(e.get("seconds", 0))) for e in events)
    if not spans:
        return None
    begin = reach = spans[0][0]
    gaps: list[tuple[float, float]] = []
    for start, stop in spans:
        if start > reach:
            gaps.append((reach, start))
        reach = max(reach, stop)
    busy = reach - begin - sum(stop - start for start, stop in gaps)
    gaps = [gap for gap in gaps if gap[1] - gap[0] > max(2.0, 0.1 * busy)]

    def place(time: float) -> float:
        return time - begin - sum(max(0.0, min(time, stop) - start) for start, stop in gaps)

    actors = _actors(summary, [str(e.get("actor", e.get("from"))) for e in events])
    row = {name: number for number, (name, _) in enumerate(actors)}
    stages = [
        (row[str(e["actor"])], str(e["stage"]), place(_moment(e)), float(e["seconds"]))
        for e in events
        if "stage" in e
    ]
    return TimeLine(
        actors=actors,
        stages=sorted(stages, key=lambda stage: -stage[3]),
        messages=[(row[str(e["from"])], place(_moment(e))) for e in events if "bytes" in e],
        pauses=[(place(start), stop - start) for start, stop in gaps],
        end=place(reach),
    )


def _moment(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _actors(summary: Summary, seen: Sequence[str]) -> list[tuple[str, str]]:
    """The rows: the cloud, each cluster followed by its devices, then whoever is left."""
    known = {"cloud": ""}
    for cluster in summary.clusters:
        reported = [d.name for d in summary.devices if d.cluster == cluster.name]
        known.setdefault(cluster.edge, cluster.edge)
        members = [cluster.name, *cluster.device_names, *reported, *cluster.lost]
        known |= dict.fromkeys(members, cluster.name)
    known |= {name: "" for name in seen if name not in known}
    return [(name, cluster) for name, cluster in known.items() if name in set(seen)]


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


def header_graph(genotype: Mapping[str, Any]) -> Graph | None:
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
    _add_tail(boxes, wires, x[-1], [(x[columns[node]] + 112, y[node]) for node in ends])
    return Graph(boxes, wires, x[-1] + 266, max(y) + 28)


def _add_tail(
    boxes: list[tuple[str, float, float, float, float, str]],
    wires: list[tuple[str, str]],
    left: float,
    ends: Sequence[tuple[float, float]],
) -> None:
    """Loose ends, concatenated, pooled, joined with the [CLS] token, classified."""
    top, bottom = min(y for _, y in ends), max(y for _, y in ends)
    middle = (top + bottom) / 2
    wires += [("inner", f"M{x} {y}H{left}") for x, y in ends]
    boxes.append(("upright", left, top - 26, 24, bottom - top + 52, "concat"))
    boxes.append(("source", left + 106, middle - 60, 84, 26, "[CLS] token"))
    wires.append(("last", f"M{left + 148} {middle - 34}V{middle - 15}"))
    reach = left + 24
    for offset, width, label in ((42, 46, "pool"), (106, 84, "join"), (210, 56, "linear")):
        wires.append(("inner", f"M{reach} {middle}H{left + offset}"))
        boxes.append(("tail", left + offset, middle - 15, width, 30, label))
        reach = left + offset + width
