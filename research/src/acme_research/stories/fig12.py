"""Fig. 12: how many blocks B and cells U a header needs, on a large and on a small backbone."""

from typing import Any

from matplotlib.figure import Figure

from acme_research.frame.bench import Bench
from acme_research.frame.drawing import level, line
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.probe import ON_PUBLIC, on_public
from acme_research.frame.story import Findings, Story
from acme_research.stories.headers import searched


def measure(bench: Bench) -> dict[str, Any]:
    base = bench.fleet.header
    found: dict[str, Any] = {}
    for name, (width, depth) in bench.extra["backbones"].items():
        found[name] = {
            "B": {
                str(b): searched(bench, width, depth, b, base.cells) for b in bench.extra["blocks"]
            },
            "U": {
                str(u): searched(bench, width, depth, base.blocks, u) for u in bench.extra["cells"]
            },
        }
    return found


def find(rows: list[dict[str, Any]]) -> Findings:
    numbers: dict[str, Any] = {}
    parts = []
    for name, axes in rows[0].items():
        for axis, values in axes.items():
            few, many = min(values, key=int), max(values, key=int)
            column = {v: [row[name][axis][v]["test"] for row in rows] for v in values}
            gain = paired(column[many], column[few])
            numbers.setdefault(name, {})[axis] = {v: mean_interval(x) for v, x in column.items()}
            numbers[name][f"{axis} = {many} - {few}"] = gain
            parts.append(f"{name}, {axis} {few} → {many}: {text(gain)}")
    return Findings(f"points gained by a more complex header: {'; '.join(parts)}", numbers)


def draw(figure: Figure, result: dict[str, Any]) -> None:
    places = figure.subplots(1, 2, sharey=True)
    for axes, axis in zip(places, ("B", "U"), strict=True):
        for name in ("large", "small"):
            told = result["numbers"][name][axis]
            line(axes, [int(v) for v in told], list(told.values()), f"{name} backbone")
        level(axes, result.get("probe"), ON_PUBLIC)
        axes.set_xlabel({"B": "blocks B", "U": "cells U"}[axis])
        axes.set_ylabel("test accuracy, %")
    places[-1].legend()


STORY = Story(
    "fig12",
    "blocks B and cells U of the header",
    "on a large backbone a simple header is enough and a complex one may cost accuracy; on a small "
    "one accuracy rises with B and U (pictures, no figures)",
    measure,
    find,
    draw,
    on_public,
)
