"""The style of the report's figures: colours, axes with named rows, SVG text.

A figure takes its colours from the page. The module imports matplotlib, so it is imported only when
a report is written.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from acme_fleet.report.words import bytes_text

INK, MUTED, LINE, SURFACE, WARN = "#1b2430", "#5f6b7a", "#dde2e8", "#fefefe", "#c0392b"
CLUSTER_COLORS = (
    *("#0072b2", "#d55e00", "#7e0bec", "#6a323a"),
    *("#cd7b92", "#a0925b", "#432ca7", "#860504"),
)
DARK_COLORS = (
    *("#56b4e9", "#f0902f", "#bd5bff", "#e7ecb8"),
    *("#8d8a5a", "#fe269f", "#10f9e6", "#afff08"),
)
"""Of clusters on a light and on a dark page. They lie far apart for readers with and without a
colour vision deficiency: a CIE76 difference above 23 between any two, see the tests.
"""
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


class Drawing(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight")
        return buffer.getvalue()


def canvas(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A figure with one set of axes; all in inches, so that figures line up on the page."""
    figure = Drawing(figsize=(width, height))
    wide, high = (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes((left / width, bottom / height, wide, high))


def row_canvas(
    width: float, rows: Sequence[tuple[str, str, object]], *, right: float, label: str
) -> tuple[Figure, Axes]:
    """Axes with a named row for each item, from the top; row -1 is for headings.

    A row is a label, a colour, and something; rows with nothing are headings of a group.
    """
    left = 0.3 + 0.071 * max(len(short(name)) for name, _, _ in rows)
    high = 0.27 * (len(rows) + 1)
    figure, axes = canvas(width, high + 0.5, left=left, right=right, top=0.02, bottom=0.48)
    axes.set_ylim(len(rows) - 0.5, -1.5)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    for y, (name, color, something) in enumerate(rows):
        heading = something is None
        cells(
            axes,
            y,
            {(8 if not heading else 0) - 72 * left + 2: short(name)},
            color if heading else INK,
            at=0,
            ha="left",
            weight="bold" if heading else "normal",
        )
    return figure, axes


def cells(
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


def byte_axis(axes: Axes) -> None:
    """Sizes on the x axis in words."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5))
