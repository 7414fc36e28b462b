"""The report's figures: matplotlib drawings as SVG text that takes its colours from the page.

Each drawing takes plain data and returns a ``Figure``; :func:`svg` sets the style and renders it.
The module imports matplotlib, so it is imported only when a report is written.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from acme_fleet.report.summary import ClusterSummary, DeviceSummary, Summary

if TYPE_CHECKING:
    from acme_fleet.report.html import Flow, TimeLine

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
STYLE = {
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
Row = tuple[str, str, DeviceSummary | None]
"""Label, colour, and the device; none for the line that names a cluster."""


def svg(name: str, draw: Callable[..., Figure], *args: object) -> str:
    """Draw and render; ``name`` keeps the ids of one page's figures apart. Deterministic."""
    buffer = io.StringIO()
    with rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        rcdefaults()
        rcParams.update(STYLE | {"svg.hashsalt": name})
        draw(*args).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Matplotlib numbers its groups in every figure anew, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(
        r'<svg width="([\d.]+pt)" height="[\d.]+pt"', r'<svg style="max-width: \1"', text, count=1
    )
    text = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--font)", text)
    for color, variable in THEME.items():
        text = text.replace(f": {color}", f": var(--{variable})")
    return text.strip()


# --- words and numbers ------------------------------------------------------------------------


def bytes_text(size: float, digits: int = 3) -> str:
    """A size as people write it, e.g. ``412 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            break
        size /= 1000
    else:
        unit = "TB"
    return f"{size:.{digits}g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"


def duration_text(seconds: float) -> str:
    """A duration as people write it, e.g. ``1 min 54 s``."""
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def energy_text(joules: float) -> str:
    """An energy as people write it, e.g. ``59 mJ``."""
    return f"{joules:.2g} J" if 0.0995 <= joules < 99.5 else (
        f"{joules * 1000:.2g} mJ" if joules < 1 else f"{joules:.0f} J"
    )


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


# --- drawing ----------------------------------------------------------------------------------


def front(cluster: ClusterSummary, color: str) -> Figure:
    """A cluster's candidates: loss against size, energy as area (Eq. 10)."""
    figure, axes = _canvas(HALF, 3.5, left=0.62, right=0.2, top=0.55, bottom=0.5)
    most = max(c.energy_j for c in cluster.candidates) or 1.0
    looks = {
        (False, False): {"facecolor": "none", "edgecolor": MUTED, "alpha": 0.45},
        (True, False): {"facecolor": "none", "edgecolor": color, "alpha": 0.9},
        (True, True): {"facecolor": color, "edgecolor": SURFACE, "alpha": 0.75},
    }
    for (feasible, on_front), look in looks.items():
        chosen = [c for c in cluster.candidates if (c.feasible, c.on_front) == (feasible, on_front)]
        x, y = [c.size_bytes for c in chosen], [c.loss for c in chosen]
        area = [170 * c.energy_j / most for c in chosen]
        axes.scatter(x, y, s=area, linewidth=0.8, zorder=3, **look)
    steps: list[tuple[float, float]] = []
    for c in sorted((c for c in cluster.candidates if c.on_front), key=lambda c: c.size_bytes):
        if not steps or c.loss < steps[-1][1]:
            steps.append((c.size_bytes, c.loss))
    axes.step(*zip(*steps, strict=True), where="post", color=color, linewidth=1.2, alpha=0.7) if steps else None
    axes.set_xlabel("size of the whole model")
    axes.set_ylabel("loss on public validation data")
    return figure


def _canvas(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A figure with one set of axes; all in inches, so that figures line up on the page."""
    figure = Figure(figsize=(width, height))
    wide, high = (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes((left / width, bottom / height, wide, high))
