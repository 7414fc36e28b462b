"""The report's figures of the devices and of what their clusters chose from; and all of a page.

Each drawing takes plain data and returns a ``Figure``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from acme_fleet.report.intervals import wilson
from acme_fleet.report.page.canvas import (
    BEHIND,
    HALF,
    INK,
    LINE,
    MUTED,
    SURFACE,
    WARN,
    byte_axis,
    canvas,
    cells,
    row_canvas,
    svg,
)
from acme_fleet.report.page.event_plots import timeline, traffic
from acme_fleet.report.page.events import Flow, TimeLine
from acme_fleet.report.page.facts import MOST_LISTED
from acme_fleet.report.words import bytes_text, energy_text, percent_text
from acme_fleet.runs.events import LinkTier
from acme_fleet.runs.summary import Candidate, ClusterSummary, DeviceSummary, Summary
from acme_fleet.selection.front import interval_end

_MOST_ROWS = 40  # of clusters
_MOST_BYTES = 500_000  # of all fronts, and of the time line: a page stays below 3 MB
Row = tuple[str, str, DeviceSummary | None]
"""Label, colour, and the device; none for the line that names a cluster."""
Group = tuple[str, str, Sequence[DeviceSummary]]
"""Label, colour, and devices."""


def figures(
    summary: Summary, flows: Sequence[Flow], line: TimeLine | None, colors: Mapping[str, str]
) -> dict[str, Any]:
    """All figures of a page as SVG text; those without data are left out."""
    found: dict[str, Any] = {"fronts": {}, "traffic": {}, "accuracy": "", "timeline": ""}
    if len(summary.devices) > MOST_LISTED:
        groups = _groups(summary, colors)
        found |= {"accuracy": svg("accuracy", spread, groups), "sizes": svg("sizes", used, groups)}
    elif summary.devices:
        rows: list[Row] = []
        for name, color in colors.items():
            members = [device for device in summary.devices if device.cluster == name]
            rows += [(name, color, None), *((d.name, color, d) for d in members)] if members else []
        found |= {"accuracy": svg("accuracy", accuracy, rows), "sizes": svg("sizes", sizes, rows)}
    left = _MOST_BYTES
    for number, cluster in enumerate(summary.clusters):
        if cluster.candidates and left > 0:
            drawn = svg(
                f"front-{number}",
                front,
                cluster,
                colors[cluster.name],
                summary.selection.performance_window,
            )
            found["fronts"][cluster.name] = drawn
            left -= len(drawn)
    if len({flow.cluster for flow in flows}) > _MOST_ROWS:
        flows = _over_clusters(flows)
    for tier in sorted({flow.tier for flow in flows}):
        found["traffic"][tier] = svg(f"traffic-{tier}", traffic, flows, tier, colors)
    if line and len(line.actors) <= 3 * MOST_LISTED:
        drawn = svg("timeline", timeline, line, colors)
        found["timeline"] = drawn if len(drawn) <= _MOST_BYTES else ""
    return found


def _over_clusters(flows: Sequence[Flow]) -> list[Flow]:
    """The flows of all clusters as those of one."""
    found: dict[tuple[LinkTier, bool, str], list[Flow]] = {}
    for flow in flows:
        found.setdefault((flow.tier, flow.up, flow.kind), []).append(flow)
    return [
        Flow(*key, "all clusters", sum(f.size_bytes for f in own), sum(f.messages for f in own))
        for key, own in found.items()
    ]


# --- the fleet --------------------------------------------------------------------------------


def accuracy(rows: Sequence[Row]) -> Figure:
    """Each device's test accuracy: coarse, linear, probe, final with Wilson's 95 % interval."""
    tokens = any(device.language for _, _, device in rows if device)
    measure = "right tokens of" if tokens else "accuracy on"
    figure, axes = row_canvas(HALF, rows, right=1.45, label=f"{measure} the device's own test data")
    low = 1.0
    for y, (_, color, device) in enumerate(rows):
        if device is None:
            continue
        interval = wilson(device.accuracy, device.test_samples)
        if device.language is not None:  # a share of tokens, which are not independent
            interval = device.accuracy, device.accuracy
        low = min(low, interval[0], device.accuracy_coarse, device.accuracy_linear)
        if device.accuracy_probe is not None:
            low = min(low, device.accuracy_probe)
            axes.plot(device.accuracy_probe, y, "x", color=INK, markersize=5, zorder=4)
        if device.accuracy_reference is not None:
            low = min(low, device.accuracy_reference)
            axes.plot(device.accuracy_reference, y, "D", color=INK, mfc="none", markersize=4.5)
        axes.hlines(y, interval[0], interval[1], color=color, alpha=0.25, linewidth=6)
        axes.plot((device.accuracy_coarse, device.accuracy), (y, y), color=color, zorder=3)
        axes.plot(device.accuracy_linear, y, "|", color=INK, markersize=9, zorder=4)
        axes.plot(
            device.accuracy_coarse, y, "o", color=color, mfc=SURFACE, markersize=5.5, zorder=5
        )
        axes.plot(device.accuracy, y, "o", color=color, mec=SURFACE, markersize=7, zorder=6)
        gain = 100 * (device.accuracy - device.accuracy_coarse)
        cells(axes, y, {34: f"{100 * device.accuracy:.1f}", 66: f"{gain:+.1f}"}, INK)
        cells(axes, y, {98: f"{device.test_samples}"}, MUTED)
    cells(axes, -1, {34: "final", 66: "gain", 98: "tests"}, MUTED)
    axes.set_xlim(math.floor(10 * low) / 10, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    return figure


def _groups(summary: Summary, colors: Mapping[str, str]) -> list[Group]:
    """The fleet, then its clusters: those of the most devices, where there are very many."""
    named = {name: [d for d in summary.devices if d.cluster == name] for name in colors}
    largest = sorted(named, key=lambda name: -len(named[name]))[:_MOST_ROWS]
    shown = [(name, colors[name], named[name]) for name in named if name in largest and named[name]]
    fleet = ("all devices", INK, summary.devices)
    return [fleet, *shown] if len(shown) > 1 else [fleet]


def _quartiles(axes: Axes, y: float, values: Sequence[float], color: str) -> list[float]:
    """A line over all values, a bar over half of them, a dot in the middle; returns the five."""
    five = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    axes.hlines(y, five[0], five[4], color=color, linewidth=1.2, zorder=2)
    axes.hlines(y, five[1], five[3], color=color, alpha=0.45, linewidth=7, zorder=3)
    axes.plot(five[2], y, "o", color=color, mec=SURFACE, markersize=7, zorder=6)
    return five


def spread(groups: Sequence[Group]) -> Figure:
    """The final accuracies of each cluster's devices, and means of what they are compared with."""
    figure, axes = row_canvas(HALF, groups, right=1.55, label="accuracy on devices' test data")
    low = 1.0
    for y, (_, color, devices) in enumerate(groups):
        five = _quartiles(axes, y, [d.accuracy for d in devices], color)
        low = min(low, five[0])
        rivals = {
            "|": [d.accuracy_linear for d in devices],
            "x": [d.accuracy_probe for d in devices],
            "D": [d.accuracy_reference for d in devices],
        }
        for marker, values in rivals.items():
            known = [value for value in values if value is not None]
            if known:
                face = "none" if marker == "D" else INK
                size = {"|": 9, "x": 5, "D": 4.5}[marker]
                place = float(np.mean(known))
                low = min(low, place)
                axes.plot(place, y, marker, color=INK, mfc=face, markersize=size, zorder=5)
        cells(axes, y, {34: f"{100 * five[2]:.1f}", 66: f"{100 * five[0]:.1f}"}, INK)
        cells(axes, y, {104: f"{len(devices)}"}, MUTED)
    cells(axes, -1, {34: "middle", 66: "least", 104: "devices"}, MUTED)
    axes.set_xlim(math.floor(10 * low) / 10 - 0.01, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    return figure


def used(groups: Sequence[Group]) -> Figure:
    """The share of its storage limit that each device's model takes, by cluster."""
    label = "model file as a share of the device's limit"
    figure, axes = row_canvas(HALF, groups, right=1.8, label=label)
    most = 1.0
    for y, (_, color, devices) in enumerate(groups):
        shares = [d.size_bytes / d.capacity_bytes for d in devices]
        most = max(most, _quartiles(axes, y, shares, color)[-1])
        middle = float(np.median([d.size_bytes for d in devices]))
        over = sum(share > 1 for share in shares)
        cells(axes, y, {50: bytes_text(middle)}, INK)
        cells(axes, y, {110: f"{over}" if over else "none"}, WARN if over else MUTED)
    cells(axes, -1, {50: "middle", 110: "exceed it"}, MUTED)
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set_xlim(0, 1.03 * most)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    return figure


def sizes(rows: Sequence[Row]) -> Figure:
    """Each shipped file against its device's storage limit."""
    figure, axes = row_canvas(HALF, rows, right=1.8, label="size; the mark is the device's limit")
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
        share = percent_text(device.size_bytes / device.capacity_bytes)
        cells(axes, y, {50: bytes_text(device.size_bytes)}, INK)
        cells(axes, y, {82: share, 124: bytes_text(device.capacity_bytes)}, MUTED)
    cells(axes, -1, {50: "size", 82: "of", 124: "limit"}, MUTED)
    byte_axis(axes)
    return figure


# --- the clusters -----------------------------------------------------------------------------


def front(cluster: ClusterSummary, color: str, window: float) -> Figure:
    """A cluster's candidates: loss against size, energy as area (Eq. 10), and what γ_p spans."""
    figure, axes = canvas(HALF, 3.5, left=0.6, right=0.2, top=0.6, bottom=0.5)
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
    axes.set_xlabel("size with the smallest header")
    kind = "loss" if cluster.labelled else "feature error"
    axes.set_ylabel(f"{kind} on public validation data")
    axes.grid(visible=True, axis="both")
    byte_axis(axes)
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
    text = f"chosen: {chosen.variant}"
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
