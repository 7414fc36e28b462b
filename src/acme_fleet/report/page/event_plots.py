"""The report's figures of what the events say: bytes on the links, and who worked when.

Each drawing takes plain data and returns a ``Figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from acme_fleet.report.page.canvas import (
    BEHIND,
    FULL,
    HALF,
    INK,
    LINE,
    MUTED,
    SURFACE,
    byte_axis,
    cells,
    row_canvas,
    short,
)
from acme_fleet.report.page.events import Flow, TimeLine
from acme_fleet.report.words import bytes_text, duration_text

TIME_STEPS = (
    *(digit * unit for unit in (0.001, 0.01, 0.1, 1) for digit in (1, 2, 5)),
    *(10, 20, 30, 60, 120, 300, 600, 1200, 1800),
    *(3600 * hours for hours in (1, 2, 4, 12, 24, 96)),
)


def traffic(flows: Sequence[Flow], tier: str, colors: Mapping[str, str]) -> Figure:
    """Bytes of each message type on the links between edge servers and one tier."""
    other = {"cloud": "cloud", "device": "devices"}[tier]
    downward = f"{other} → edge" if tier == "cloud" else f"edge → {other}"
    rows: list[tuple[str, list[Flow]]] = []
    for up in (False, True):
        rows.append((" → ".join(reversed(downward.split(" → "))) if up else downward, []))
        for kind in dict.fromkeys(f.kind for f in flows if (f.tier, f.up) == (tier, up)):
            rows.append((kind, [f for f in flows if (f.tier, f.up, f.kind) == (tier, up, kind)]))
    clusters = list(dict.fromkeys(f.cluster for f in flows))
    apart = {name: 0.5 * (n + 0.5) / len(clusters) - 0.25 for n, name in enumerate(clusters)}
    named = [(label, INK if found else MUTED, found or None) for label, found in rows]
    figure, axes = row_canvas(HALF, named, right=1.35, label="bytes of each cluster, log scale")
    axes.set_xscale("log")
    for y, (_, found) in enumerate(rows):
        if not found:
            continue
        axes.hlines(y, 1, max(f.size_bytes for f in found), color=LINE, linewidth=1.2)
        for f in found:
            color, beside = colors.get(f.cluster, MUTED), y + apart[f.cluster]
            axes.plot(max(1, f.size_bytes), beside, "o", color=color, mec=SURFACE, ms=6.5)
        cells(axes, y, {46: bytes_text(sum(f.size_bytes for f in found))}, INK)
        cells(axes, y, {90: f"{sum(f.messages for f in found)}"}, MUTED)
    cells(axes, -1, {46: "total", 90: "number"}, MUTED)
    every = [max(1, f.size_bytes) for _, found in rows for f in found]
    axes.set_xlim(min(every) / 2, max(every) * 2)
    byte_axis(axes)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def timeline(line: TimeLine, colors: Mapping[str, str]) -> Figure:
    """Stages as bars and messages as ticks, a row for each actor."""
    rows = [
        (name, colors.get(cluster, MUTED), name if cluster not in ("", name) else None)
        for name, cluster in line.actors
    ]
    figure, axes = row_canvas(FULL, rows, right=0.2, label="running time")
    end = 1.13 * line.end or 1.0
    axes.set_xlim(0, end)
    points = axes.get_window_extent().width * 0.72 / end
    for row, (_, color, _) in enumerate(rows):
        own = sorted((s for s in line.stages if s[0] == row), key=lambda s: (s[2], -s[3]))
        outer: list[tuple[float, float, str]] = []
        for _, name, start, seconds in own:
            nested = bool(outer) and start + seconds <= outer[-1][1] + 0.01
            axes.barh(
                row - 0.06,
                max(seconds, 0.8 / points),
                left=start,
                height=0.22 if nested else 0.5,
                color=INK if nested else color,
                alpha=0.35 if nested else 0.85,
                zorder=4 if nested else 3,
            )
            if not nested:
                outer.append((start, start + seconds, name))
        _name_stages(axes, row, outer, points)
        sent = [at for sender, at in line.messages if sender == row]
        axes.vlines(sent, row + 0.24, row + 0.42, color=INK, linewidth=0.6, alpha=0.7)
    for at, seconds in line.pauses:
        axes.axvline(at, color=MUTED, linestyle=":", linewidth=1)
        text = f"pause of {duration_text(seconds)}"
        axes.text(at, -0.8, text, ha="center", va="center", color=MUTED, bbox=BEHIND)
    step = next((step for step in TIME_STEPS if end / step <= 8), end / 4)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration_text(value)))
    return figure


def _name_stages(
    axes: Axes, row: int, stages: Sequence[tuple[float, float, str]], points: float
) -> None:
    """Names inside their bars or, where there is room, after them."""
    if not stages:  # a device that was lost before it did anything
        return
    starts = [start for start, _, _ in stages[1:]] + [axes.get_xlim()[1]]
    for (start, stop, name), following in zip(stages, starts, strict=True):
        wide = 4.7 * len(short(name)) + 8
        if (stop - start) * points > wide:
            middle = (start + stop) / 2
            axes.text(
                middle, row - 0.06, short(name), color=SURFACE, ha="center", va="center", zorder=5
            )
        elif (following - stop) * points > wide:
            axes.text(stop + 4 / points, row - 0.06, short(name), color=MUTED, va="center")
