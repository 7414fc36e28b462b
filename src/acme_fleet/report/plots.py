"""The report's figures: matplotlib drawings as SVG text that takes its colours from the page.

Each drawing takes plain data and returns a ``Figure``; :func:`svg` sets the style and renders it.
The module imports matplotlib, so it is imported only when a report is written.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from acme_fleet.cloud.pareto import interval_end
from acme_fleet.report.html import Flow, TimeLine, bytes_text, duration_text, energy_text
from acme_fleet.report.summary import Candidate, ClusterSummary, DeviceSummary, Summary

INK, MUTED, LINE, SURFACE, WARN = "#1b2430", "#5f6b7a", "#dde2e8", "#fefefe", "#c0392b"
CLUSTER_COLORS = (
    *("#2a6fb0", "#c4661a", "#1d8a6b", "#7a56b5"),
    *("#bf4377", "#22859c", "#83761a", "#8a5a44"),
)
THEME = {INK: "ink", MUTED: "muted", LINE: "line", SURFACE: "surface", WARN: "warn"} | {
    color: f"c{index}" for index, color in enumerate(CLUSTER_COLORS)
}
"""Colours as drawn, and the page's variables that stand in for them (light and dark)."""

HALF, FULL = 5.4, 11.0  # inches: half and the whole of the page's width
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.transparent": True,
}
BEHIND = {"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
TIME_STEPS = (
    *(digit * unit for unit in (0.001, 0.01, 0.1, 1) for digit in (1, 2, 5)),
    *(10, 20, 30, 60, 120, 300, 600, 1200, 1800),
    *(3600 * hours for hours in (1, 2, 4, 12, 24, 96)),
)
Row = tuple[str, str, DeviceSummary | None]
"""Label, colour, and the device; none for the line that names a cluster."""


def figures(
    summary: Summary, flows: Sequence[Flow], line: TimeLine | None, colors: Mapping[str, str]
) -> dict[str, Any]:
    """All figures of a page as SVG text; those without data are left out."""
    found: dict[str, Any] = {"fronts": {}, "traffic": {}, "accuracy": "", "timeline": ""}
    rows: list[Row] = []
    for name, color in colors.items():
        members = [device for device in summary.devices if device.cluster == name]
        rows += [(name, color, None), *((d.name, color, d) for d in members)] if members else []
    if rows:
        found |= {"accuracy": svg("accuracy", accuracy, rows), "sizes": svg("sizes", sizes, rows)}
    for number, cluster in enumerate(summary.clusters):
        if cluster.candidates:
            drawn = svg(
                f"front-{number}",
                front,
                cluster,
                colors[cluster.name],
                summary.selection.performance_window,
            )
            found["fronts"][cluster.name] = drawn
    for tier in sorted({flow.tier for flow in flows}):
        found["traffic"][tier] = svg(f"traffic-{tier}", traffic, flows, tier, colors)
    if line:
        found["timeline"] = svg("timeline", timeline, line, colors)
    return found


def svg(name: str, draw: Callable[..., Figure], *args: object) -> str:
    """Draw and render; ``name`` keeps the ids of one page's figures apart. Deterministic."""
    buffer = io.StringIO()
    with rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        rcdefaults()
        rcParams.update({**STYLE, "svg.hashsalt": name})
        draw(*args).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    # Matplotlib numbers its groups in every figure anew, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(
        r'<svg width="([\d.]+pt)" height="[\d.]+pt"', r'<svg style="max-width: \1"', text, count=1
    )
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    for color, variable in THEME.items():
        text = text.replace(f": {color}", f": var(--{variable})")
    return text.strip()


def short(name: str, limit: int = 22) -> str:
    """A name, its middle left out where it is too long for a figure."""
    keep = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[:keep]}…{name[-keep:]}"


def wilson(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share, e.g. of an accuracy."""
    z2 = 1.959964**2
    center = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    spread = math.sqrt(z2 * (share * (1 - share) / samples + z2 / (4 * samples**2)))
    half = spread / (1 + z2 / samples)
    return max(0.0, center - half), min(1.0, center + half)


# --- the fleet --------------------------------------------------------------------------------


def accuracy(rows: Sequence[Row]) -> Figure:
    """Each device's test accuracy: coarse, linear, final with Wilson's 95 % interval."""
    figure, axes = _row_canvas(
        HALF, rows, right=1.45, label="accuracy on the device's own test data"
    )
    low = 1.0
    for y, (_, color, device) in enumerate(rows):
        if device is None:
            continue
        interval = wilson(device.accuracy, device.test_samples)
        low = min(low, interval[0], device.accuracy_coarse, device.accuracy_linear)
        axes.hlines(y, interval[0], interval[1], color=color, alpha=0.25, linewidth=6)
        axes.plot((device.accuracy_coarse, device.accuracy), (y, y), color=color, zorder=3)
        axes.plot(device.accuracy_linear, y, "|", color=INK, markersize=9, zorder=4)
        axes.plot(
            device.accuracy_coarse, y, "o", color=color, mfc=SURFACE, markersize=5.5, zorder=5
        )
        axes.plot(device.accuracy, y, "o", color=color, mec=SURFACE, markersize=7, zorder=6)
        gain = 100 * (device.accuracy - device.accuracy_coarse)
        _cells(axes, y, {34: f"{100 * device.accuracy:.1f}", 66: f"{gain:+.1f}"}, INK)
        _cells(axes, y, {98: f"{device.test_samples}"}, MUTED)
    _cells(axes, -1, {34: "final", 66: "gain", 98: "tests"}, MUTED)
    axes.set_xlim(math.floor(10 * low) / 10, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    return figure


def sizes(rows: Sequence[Row]) -> Figure:
    """Each shipped file against its device's storage limit."""
    figure, axes = _row_canvas(
        HALF, rows, right=1.8, label="file size; the mark is the device's limit"
    )
    devices = [device for _, _, device in rows if device]
    longest = max(device.size_bytes for device in devices)
    limits = [d.capacity_bytes for d in devices if d.capacity_bytes <= 3 * longest]
    end = 1.03 * max(longest, *limits, 0 if len(limits) == len(devices) else 1.5 * longest)
    axes.set_xlim(0, end)
    for y, (_, color, device) in enumerate(rows):
        if device is None:
            continue
        fits = device.size_bytes <= device.capacity_bytes
        axes.barh(y, device.size_bytes, height=0.5, color=color if fits else WARN, zorder=3)
        if device.capacity_bytes <= end:
            axes.vlines(
                device.capacity_bytes, y - 0.36, y + 0.36, color=INK, linewidth=1.6, zorder=4
            )
        else:
            axes.plot(0.985 * end, y, ">", color=INK, markersize=4, zorder=4)
        share = f"{100 * device.size_bytes / device.capacity_bytes:.0f} %"
        _cells(axes, y, {50: bytes_text(device.size_bytes)}, INK)
        _cells(axes, y, {82: share, 124: bytes_text(device.capacity_bytes)}, MUTED)
    _cells(axes, -1, {50: "file", 82: "of", 124: "limit"}, MUTED)
    _byte_axis(axes)
    return figure


# --- the clusters -----------------------------------------------------------------------------


def front(cluster: ClusterSummary, color: str, window: float) -> Figure:
    """A cluster's candidates: loss against size, energy as area (Eq. 10), and what γ_p spans."""
    figure, axes = _canvas(HALF, 3.5, left=0.6, right=0.2, top=0.6, bottom=0.5)
    most = max((c.energy_j for c in cluster.candidates), default=0.0) or 1.0
    for c in cluster.candidates:
        face, edge = (color, SURFACE) if c.on_front else ("none", color if c.feasible else MUTED)
        axes.scatter(
            c.size_bytes,
            c.loss,
            s=max(6.0, 160 * c.energy_j / most),
            facecolor=face,
            edgecolor=edge,
            linewidth=0.9,
            alpha=0.8 if c.feasible else 0.4,
            zorder=3,
        )
    best: list[Candidate] = []
    for c in sorted((c for c in cluster.candidates if c.on_front), key=lambda c: c.size_bytes):
        if not best or c.loss < best[-1].loss:
            best.append(c)
    line = _stairs([(c.size_bytes, c.loss) for c in best])
    axes.plot([x for x, _ in line], [y for _, y in line], color=color, linewidth=1.2, alpha=0.6)
    losses = np.array([c.loss for c in cluster.candidates if c.feasible])
    if losses.size:
        axes.axhspan(losses.min(), interval_end(losses, window), color=color, alpha=0.1, lw=0)
    _storage_limit(axes, cluster)
    _energy_key(axes, [c.energy_j for c in cluster.candidates])
    spots = [(c.size_bytes, c.loss) for c in cluster.candidates] + line
    for c in (c for c in cluster.candidates if c.chosen):
        size = (math.sqrt(max(6.0, 160 * c.energy_j / most)) + 5) ** 2
        axes.scatter(c.size_bytes, c.loss, s=size, facecolor="none", edgecolor=INK, linewidth=1.5)
        _label(axes, c, spots, cluster.storage_limit_bytes)
    axes.set_xlabel("size of the whole model with the smallest header")
    axes.set_ylabel("loss on public validation data")
    axes.grid(visible=True, axis="both")
    _byte_axis(axes)
    return figure


def _storage_limit(axes: Axes, cluster: ClusterSummary) -> None:
    limit, largest = cluster.storage_limit_bytes, max(c.size_bytes for c in cluster.candidates)
    text = f"storage limit {bytes_text(limit)}"
    end = 1.06 * max(largest, limit if limit < 1.3 * largest else 0)
    axes.set_xlim(0, end)
    above = axes.get_xaxis_transform()
    if limit > end:
        axes.text(end, 1.02, f"{text} →", transform=above, ha="right", color=INK)
        return
    axes.axvspan(limit, end, color=LINE, alpha=0.4, linewidth=0, zorder=0)
    axes.axvline(limit, color=INK, linewidth=1.1)
    side = "left" if limit < 0.3 * end else "right" if limit > 0.7 * end else "center"
    axes.text(limit, 1.02, text, transform=above, ha=side, color=INK)


def _energy_key(axes: Axes, energies: Sequence[float]) -> None:
    above, x = axes.figure.transFigure, 0.62
    axes.text(x, 0.955, "energy", transform=above, color=MUTED, ha="right", va="center")
    for energy in sorted({min(energies), max(energies)}):
        area = max(6.0, 160 * energy / (max(energies) or 1.0))
        spot = {"transform": above, "clip_on": False, "facecolor": "none", "edgecolor": MUTED}
        axes.scatter(x + 0.035, 0.955, s=area, linewidth=0.9, **spot)
        text = energy_text(energy)
        axes.text(x + 0.06, 0.955, text, transform=above, color=MUTED, va="center")
        x += 0.17


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The stairs through points from left to right, in steps small enough to keep labels off."""
    corners = [point for (_, y), (x, z) in itertools.pairwise(points) for point in ((x, y), (x, z))]
    line = list(points[:1])
    for x, y in corners:
        (a, b), parts = line[-1], 10
        line += [(a + (x - a) * k / parts, b + (y - b) * k / parts) for k in range(1, parts + 1)]
    return line


def _label(
    axes: Axes, chosen: Candidate, others: Sequence[tuple[float, float]], stop: float
) -> None:
    """Name the chosen candidate where the fewest other things are."""
    axes.set_ylim(axes.get_ylim())
    text = f"chosen: w {chosen.width:g}, d {chosen.depth}"
    spots = axes.transData.transform(others) / 100 * 72
    x, y = axes.transData.transform((chosen.size_bytes, chosen.loss)) / 100 * 72
    frame, wide = axes.get_window_extent().bounds, 5.6 * len(text)

    def crowd(place: tuple[str, float, float]) -> float:
        left = x + place[1] - {"left": 0, "center": wide / 2, "right": wide}[place[0]]
        low = y + place[2] - 6
        inside = (spots > (left - 6, low - 6)) & (spots < (left + wide + 6, low + 18))
        box = [edge * 0.72 for edge in frame]
        limit = axes.get_xaxis_transform().transform((stop, 0))[0] * 0.72
        crossing = left < limit < left + wide
        outside = left < box[0] or left + wide > box[0] + box[2]
        outside = outside or not box[1] < low < box[1] + box[3] - 12
        return inside.all(1).sum() + 2 * crossing + 99 * outside

    sides = [
        (h, dx, dy)
        for dy in (18, -18, 36, -36, 60, -60, 84, -84)
        for h, dx in (("right", -8), ("left", 8), ("center", 0))
    ]
    side = min(sides, key=crowd)
    axes.annotate(
        text,
        (chosen.size_bytes, chosen.loss),
        side[1:],
        textcoords="offset points",
        ha=side[0],
        va="center",
        weight="bold",
        bbox=BEHIND,
        zorder=2.5,
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 8},
    )


# --- what the events say ----------------------------------------------------------------------


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
    figure, axes = _row_canvas(HALF, named, right=1.35, label="bytes of each cluster, log scale")
    axes.set_xscale("log")
    for y, (_, found) in enumerate(rows):
        if not found:
            continue
        axes.hlines(y, 1, max(f.size_bytes for f in found), color=LINE, linewidth=1.2)
        for f in found:
            color, beside = colors.get(f.cluster, MUTED), y + apart[f.cluster]
            axes.plot(max(1, f.size_bytes), beside, "o", color=color, mec=SURFACE, ms=6.5)
        _cells(axes, y, {46: bytes_text(sum(f.size_bytes for f in found))}, INK)
        _cells(axes, y, {90: f"{sum(f.messages for f in found)}"}, MUTED)
    _cells(axes, -1, {46: "total", 90: "number"}, MUTED)
    every = [max(1, f.size_bytes) for _, found in rows for f in found]
    axes.set_xlim(min(every) / 2, max(every) * 2)
    _byte_axis(axes)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def timeline(line: TimeLine, colors: Mapping[str, str]) -> Figure:
    """Stages as bars and messages as ticks, a row for each actor."""
    rows = [
        (name, colors.get(cluster, MUTED), name if cluster not in ("", name) else None)
        for name, cluster in line.actors
    ]
    figure, axes = _row_canvas(FULL, rows, right=0.2, label="running time")
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


# --- axes -------------------------------------------------------------------------------------


def _canvas(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A figure with one set of axes; all in inches, so that figures line up on the page."""
    figure = Figure(figsize=(width, height))
    wide, high = (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes((left / width, bottom / height, wide, high))


def _row_canvas(
    width: float, rows: Sequence[tuple[str, str, object]], *, right: float, label: str
) -> tuple[Figure, Axes]:
    """Axes with a named row for each item, from the top; row -1 is for headings.

    A row is a label, a colour, and something; rows with nothing are headings of a group.
    """
    left = 0.3 + 0.071 * max(len(short(name)) for name, _, _ in rows)
    high = 0.27 * (len(rows) + 1)
    figure, axes = _canvas(width, high + 0.5, left=left, right=right, top=0.02, bottom=0.48)
    axes.set_ylim(len(rows) - 0.5, -1.5)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    for y, (name, color, something) in enumerate(rows):
        heading = something is None
        _cells(
            axes,
            y,
            {(8 if not heading else 0) - 72 * left + 2: short(name)},
            color if heading else INK,
            at=0,
            ha="left",
            weight="bold" if heading else "normal",
        )
    return figure, axes


def _cells(
    axes: Axes,
    y: float,
    texts: Mapping[float, str],
    color: str,
    *,
    at: float = 1,
    ha: str = "right",
    weight: str = "normal",
) -> None:
    """Texts in a row, so many points right of the axes' right (``at=1``) or left side."""
    for offset, text in texts.items():
        axes.annotate(
            text,
            (at, y),
            (offset, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha=ha,
            va="center",
            color=color,
            weight=weight,
            annotation_clip=False,
        )


def _byte_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5))
