"""``report.html`` of a distillation: one page in the form of a fleet's, without any script."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from acme_fleet.outside import one_line
from acme_fleet.report.page.canvas import (
    CLUSTER_COLORS,
    DARK_COLORS,
    HALF,
    INK,
    MUTED,
    THEME,
    canvas,
    svg,
)
from acme_fleet.report.page.html import environment
from acme_fleet.report.terminal.distilled import (
    accuracy_verdict,
    ending_text,
    instead_text,
    latency_verdict,
    share_text,
)
from acme_fleet.runs.atomic import replacing
from acme_fleet.stratos.run_directory import Considered, DistillSummary

_MOST_ROWS = 30  # of the table of candidates
_CHOSEN = CLUSTER_COLORS[0]


def write_distilled(summary: DistillSummary, path: Path) -> None:
    """Write the page.

    Args:
        summary: everything that the run measured, with the plan behind its choice.
        path: the HTML file; it is overwritten.

    Raises:
        WriteError: if it cannot be written.
    """
    plan, wanted = summary.chosen.plan, summary.min_accuracy
    considered = plan.considered if plan else []
    page = (
        environment()
        .get_template("distilled.html.jinja")
        .render(
            summary=summary,
            chosen=summary.chosen,
            plan=plan,
            rows=considered[:_MOST_ROWS],
            front=svg("front", front, considered) if len(considered) > 1 else "",
            marks={
                "student": summary.student,
                "teacher": summary.teacher,
                "student before training": summary.start,
            },
            share=share_text,
            ending=ending_text(summary),
            verdict=None if wanted is None else accuracy_verdict(summary.student, wanted),
            latency=latency_verdict(summary),
            instead=instead_text(summary),
            theme=THEME,
            dark_colors=DARK_COLORS,
        )
    )
    with replacing(path) as file:
        file.write_text(page, encoding="utf-8", errors="replace")


def front(considered: list[Considered]) -> Figure:
    """Predicted cost and latency of the candidates that were looked at, both logarithmic."""
    figure, axes = canvas(HALF, 3.2, left=0.72, right=0.3, top=0.1, bottom=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    costs, waits = (
        [value for value in each if value > 0] or [1.0]
        for each in (
            [one.cost_usd for one in considered],
            [1000 * one.latency_s for one in considered],
        )
    )
    for axis, text, values in (
        (axes.xaxis, "cost, USD", costs),
        (axes.yaxis, "an answer, ms", waits),
    ):
        few = max(values) < 100 * min(values)
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_label_text(text)
    axes.grid(visible=True, axis="both")
    for one in considered:
        x, y = max(one.cost_usd, min(costs) / 2), max(1000 * one.latency_s, min(waits) / 2)
        chosen = "chosen" in one.words
        on_front = "front" in one.words
        axes.plot(
            *(x, y, "o" if on_front or chosen else "x"),
            color=_CHOSEN if chosen else MUTED,
            markersize=9 if chosen else 5,
            mfc=_CHOSEN if chosen else "none",
            zorder=4 if chosen else 3,
        )
        named = [word for word in one.words if word != "front"]
        if named:
            axes.annotate(
                one_line(", ".join(named), 40),
                (x, y),
                xytext=(6, 5),
                textcoords="offset points",
                color=INK,
                fontsize=7.5,
            )
    axes.margins(0.16)
    return figure
