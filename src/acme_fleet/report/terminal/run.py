"""A run in the terminal: the plan and the result."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from acme_fleet.config.fleet import Fleet
from acme_fleet.outside import one_line
from acme_fleet.report.page.device_tables import Table as Figures
from acme_fleet.report.page.device_tables import language_table, rivals_sizes, rivals_table
from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.warnings import memory_warnings
from acme_fleet.report.words import (
    accuracy_text,
    brief_duration_text,
    bytes_text,
    duration_text,
    header_text,
    share_text,
    ten_lines_text,
)
from acme_fleet.runs.summary import Summary, UpdateSummary

if TYPE_CHECKING:
    from acme_fleet.inspection.duration import Duration
    from acme_fleet.inspection.plan import Plan
    from acme_fleet.tasks.base import Evaluation, Task


ROWS = 40
"""Of a table at most: a fleet may have thousands of devices."""
_COLUMNS = 8
_NAME = 13  # characters of a name that a narrow table keeps on a line
_SPEED = ("first token", "tokens/s", "memory")
_UNSURE = 2.0  # times too short or too long an expected duration may be


def print_candidates(fleet: Fleet, plan: Plan) -> None:
    """The reference, the public data, and the candidates with exact sizes."""
    console = table_console()
    for told in (_reference_text(fleet), _public_text(fleet, plan)):
        console.print(told, soft_wrap=True, markup=False, highlight=False)
    limits = plan.limits
    if len(limits) > _COLUMNS:  # the tightest and the loosest say what there is
        order = sorted(limits, key=lambda name: limits[name])
        limits = {name: limits[name] for name in (order[0], order[-1])}
    table = Table(
        title=f"{fleet.name}: candidates with the smallest header",
        caption="the words: docs/glossary.md",
    )
    columns = ["width", "depth", "bytes", *(f"{n} ≤ {bytes_text(limits[n])}" for n in limits)]
    hidden = any(variant.hidden < 1 for variant in plan.grid.variants)
    columns[1:1] = ["hidden"] if hidden else []
    rounds = set(plan.grid.precisions) != {"float32"}
    columns[-1 - len(limits) : -1 - len(limits)] = ["precision"] if rounds else []
    executed = {c.name: c.precisions for c in fleet.clusters}
    for column in columns:
        table.add_column(column, justify="right")
    for variant, size in zip(plan.grid.variants, plan.sizes, strict=True):
        fits = [
            "fits" if size <= limit and variant.precision in executed[name] else "–"
            for name, limit in limits.items()
        ]
        shares = [f"{variant.width:g}", *([f"{variant.hidden:g}"] if hidden else [])]
        of = [variant.precision] if rounds else []
        table.add_row(*shares, f"{variant.depth}", *of, f"{size:,}", *fits)
    console.print(table)
    largest = int(plan.sizes.max())
    if len(plan.sizes) > 1 and all(
        len(plan.fitting(limit, executed[name])) == len(plan.sizes)
        for name, limit in plan.limits.items()
    ):
        console.print(
            f"all candidates, up to {bytes_text(largest)}, fit all devices: limits decide nothing, "
            f"and selection.performance_window does; a smaller one gives larger models",
            soft_wrap=True,
        )


def _reference_text(fleet: Fleet) -> str:
    """The reference's origin in words: a name could be a folder's and one on the hub."""
    checkpoint, revision = fleet.reference.checkpoint, fleet.reference.revision
    if checkpoint is None:
        return "reference: trained by the run"
    if Path(checkpoint).is_dir():
        return f"reference: the folder {one_line(str(Path(checkpoint).absolute()), 300)}"
    at = f" at {revision}" if revision else ""
    return f"reference: {one_line(str(checkpoint), 300)} of the hub{at}"


def _public_text(fleet: Fleet, plan: Plan) -> str:
    """Number and place of the public samples, and the effect of missing labels."""
    source = f", {one_line(str(fleet.data.public), 300)}" * isinstance(fleet.data.public, Path)
    told = f"public data: {plan.public_samples:,} samples{source}"
    if plan.public_labelled:
        return told
    return f"{told}, without labels: backbones are compared by their features"


def print_links(fleet: Fleet, plan: Plan) -> None:
    """Print the bytes to expect on each link."""
    console = table_console()
    from acme_fleet.edge.parts import kinds  # loads torch

    table = Table(title="expected bytes on each link, before the messages' frames")
    for column in ("cluster", "devices", "cloud → edge", "edge → devices", "devices → edge"):
        table.add_column(column, justify="right")
    for cluster in fleet.clusters[:ROWS]:
        count, limit = len(cluster.devices), plan.limits[cluster.name]
        feasible = plan.fitting(limit, cluster.precisions)
        if not len(feasible):
            table.add_row(cluster.name, str(count), "nothing fits", "–", "–")
            continue
        rounds = fleet.personalization.rounds * plan.round_bytes
        up = count * plan.feature_bytes
        most = 4 * plan.header_weights  # with it, candidates have the smallest header
        own = [min(limit, feasible[-1] + most)] * count
        backbones = feasible[-1]
        if fleet.selection.matching == "device":  # at most a backbone for each kind of device
            own = [
                min(d.storage, plan.fitting(d.storage, d.precisions)[-1] + most)
                for d in cluster.devices
            ]
            parts = kinds({d.name: (d.storage, d.energy, d.precisions) for d in cluster.devices})
            backbones = sum(plan.fitting(p.storage_bytes, p.precisions)[-1] for p, _ in parts)
        down = sum(own) + count * rounds
        table.add_row(
            cluster.name,
            str(count),
            f"{bytes_text(feasible[0])} – {bytes_text(backbones)}",
            f"{bytes_text(count * feasible[0])} – {bytes_text(down)}",
            f"{bytes_text(up)} – {bytes_text(up + count * rounds)}",
        )
    console.print(table)
    print_left_out(console, len(fleet.clusters), "clusters")


def print_duration(expected: Duration | None) -> None:
    """Print how long a run may take here, from half to twice of what some steps say."""
    if expected is None:
        return
    longest = expected.seconds
    least = (longest - expected.needless_s) / _UNSURE
    table_console().print(
        f"a run takes about {duration_text(_rounded(least))} to "
        f"{duration_text(_rounded(longest * _UNSURE))} on this machine, as busy as it is now: some "
        f"steps of the reference's training were timed, all other work is an estimate",
        soft_wrap=True,
        highlight=False,
    )


def print_memory(fleet: Fleet, needed: int) -> int:
    """Print the memory of the cloud's training, and warn where this machine has less.

    Returns:
        The number of warnings.
    """
    place = " of the GPU, with what this program has" if fleet.accelerator == "cuda" else ""
    table_console().print(
        f"the cloud's training takes about {bytes_text(needed)} of memory{place}: counted for a "
        f"step of its distillation in float32",
        soft_wrap=True,
        highlight=False,
    )
    warnings = memory_warnings(fleet, needed)
    print_warnings(warnings)
    return len(warnings)


def _rounded(seconds: float) -> float:
    """Seconds to one digit, minutes and hours to two."""
    digits = 1 if seconds < 100 else 2
    unit = 60.0 if seconds >= 100 else 1.0
    scale = 10 ** max(0, int(log10(max(seconds / unit, 1))) + 1 - digits)
    return unit * max(1, round(seconds / unit / scale)) * scale


def print_leaving(fleet: Fleet, plan: Plan) -> None:
    """Print what would leave each device, its most bytes, and the promise of noise."""
    from acme_fleet.personalization.disclosure import what_leaves  # loads torch
    from acme_fleet.personalization.rules import rule_of
    from acme_fleet.tasks.registry import task_of

    personalization = fleet.personalization
    table = Table(title="what would leave each device; samples and labels never do")
    for column in ("message", "sent", "holds", "bytes, at most", "protection"):
        table.add_column(column, justify="right" if column.startswith("bytes") else "left")
    upload = rule_of(personalization).upload_type.__name__
    most = {"FeatureSample": plan.feature_bytes, upload: plan.round_bytes}
    writes = task_of(fleet.task).per_token
    for one in what_leaves(personalization, writes=writes):
        size = bytes_text(most[one.kind]) if one.kind in most else "< 1 kB"
        table.add_row(one.kind, one.often, one.holds, size, one.protection)
    console = table_console()
    console.print(table)
    if loss := plan.loss:
        guarantees = Table(title=f"ε that the noise guarantees, at δ = {loss.delta:g}")
        for column in ("of what is sent", "ε", "against"):
            guarantees.add_column(column, justify="right" if column == "ε" else "left")
        one, all_data = "a device that differs in one sample", "a device with any other data"
        guarantees.add_row("the feature sample", _epsilon(loss.features), one)
        guarantees.add_row("all importance sets", _epsilon(loss.importance), all_data)
        everything = "both"
        if personalization.mixes_weights:
            everything = "both, with the header's weights, which have no noise"
        guarantees.add_row(everything, _epsilon(loss.sample), one)
        guarantees.add_row(everything, _epsilon(loss.device), all_data)
        console.print(guarantees)


def _epsilon(value: float | None) -> str:
    return "no guarantee" if value is None else f"{value:.3g}"


def print_figures(console: Console, title: str, found: Figures | None, caption: str = "") -> None:
    """Print a table of the report; nothing where there is none."""
    if found is None:
        return
    table = Table(title=title, caption=caption or None)
    rows = [[one_line(name, 60), *cells] for name, *cells in found.rows]
    for column, *cells in zip(found.columns, *rows, strict=True):
        _add_column(table, column, cells)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _add_column(table: Table, name: str, cells: Sequence[str]) -> None:
    """Names of columns are broken between words; numbers below them, and short names, are not."""
    whole = max(map(len, [*name.split(), *cells]))
    table.add_column(
        name,
        justify="left" if name == "device" else "right",
        min_width=min(whole, _NAME),
        no_wrap=" " not in name and whole <= _NAME,
        overflow="fold",
    )


def print_summary(summary: Summary) -> None:
    """The devices, the clusters' choices and the traffic."""
    console = table_console()
    tokens = any(device.language for device in summary.devices)
    measure = "token accuracy" if tokens else "accuracy"
    table = Table(title=f"{summary.name}, seed {summary.seed}: {measure} on devices' test data")
    columns = ["device", "cluster", "w, d", "size", "limit", "coarse", "linear", "final", "tests"]
    if summary.probe:
        columns[7:7] = ["ten lines", "averaged"]
    for column in columns:
        justify = "left" if column in columns[:2] else "right"
        table.add_column(column, justify=justify, overflow="fold")  # names stay different
    clusters = {cluster.name: cluster for cluster in summary.clusters}
    for device in summary.devices[:ROWS]:
        cluster = clusters[device.cluster]
        probes = device.accuracy_probe, device.accuracy_probe_averaged
        table.add_row(
            one_line(device.name, 60),
            one_line(device.cluster, 60),
            cluster.variant.brief,
            bytes_text(device.size_bytes),
            bytes_text(device.capacity_bytes),
            f"{device.accuracy_coarse:.3f}",
            f"{device.accuracy_linear:.3f}",
            *(map(accuracy_text, probes) if summary.probe else ()),
            f"{device.accuracy:.3f}",
            str(device.test_samples),
        )
    console.print(table)
    print_left_out(console, len(summary.devices), "devices; summary.json has them")
    shown, writes = summary.devices[:ROWS], "perplexity, and answers that are exactly right"
    written = language_table(shown)  # "loss per token" says what the last perplexity does
    if written is not None:
        print_figures(console, writes, written.without("loss per token", *_SPEED))
        quick = {*written.columns} - {"device", *_SPEED}
        print_figures(console, "writing in PyTorch, on this machine", written.without(*quick))
    judged = writes if tokens else "right answers"
    sizes = (f"{name}: {bytes_text(size)}" for name, size in rivals_sizes(shown).items())
    print_figures(console, f"{judged}: rivals", rivals_table(shown), "; ".join(sizes))
    traffic, reference = summary.traffic, summary.reference
    known = f", {measure} {accuracy_text(reference.accuracy)} on public test data"
    seconds = brief_duration_text(summary.duration_s)
    more = " (the header and the rounds decide that, not the samples)"
    console.print(
        f"reference, {reference.origin}: {bytes_text(reference.size_bytes)}"
        f"{'' if reference.accuracy is None else known}; devices uploaded "
        f"{bytes_text(traffic.device_up_bytes)}, "
        f"{share_text(traffic.upload_ratio)} their raw data"
        f"{more if traffic.upload_ratio > 1 else ''}; {seconds}",
        soft_wrap=True,
    )
    for cluster in summary.clusters[:ROWS]:
        if words := header_text(cluster.contenders):
            console.print(Text(f"header of {one_line(cluster.name, 60)}: {words}"), soft_wrap=True)
    if probe := summary.probe:
        whole, small = probe.size_bytes, probe.size_bytes_int8
        rounded = f", before rounding {bytes_text(whole)}" if whole > small else ""
        console.print(
            f"beside it {ten_lines_text(probe.pooling)}: {bytes_text(probe.size_bytes_int8)}"
            f"{rounded}; averaged: the mean of all devices' regressions",
            soft_wrap=True,
        )
    if summary.update:
        _print_update(console, summary.update)
    if traffic.resent_bytes:
        console.print(f"sent again, and not counted above: {bytes_text(traffic.resent_bytes)}")
    if summary.damaged_events:
        console.print(
            f"{summary.damaged_events} damaged lines of events.jsonl are in no sum of bytes or time"
        )
    for candidate in summary.left_out[:ROWS]:
        console.print(Text("note ", "yellow") + Text(one_line(candidate, 500)))
    lost = {f"cluster {edge}": reason for edge, reason in summary.lost.items()}
    for cluster in summary.clusters:
        lost |= cluster.lost
    for name, why in list(lost.items())[:ROWS]:
        console.print(Text("lost ", "red") + Text(f"{one_line(name, 60)}: {one_line(why, 500)}"))
    print_left_out(console, len(lost), "lost")
    print_warnings(summary.warnings)


def _print_update(console: Console, update: UpdateSummary) -> None:
    """The count of devices as they were, and a line for each change."""
    told = [f"update of {update.previous}: {len(update.kept)} devices as they were, bit for bit"]
    told += [f"computed {name}: {why}" for name, why in update.computed.items()]
    told += [f"header of {name} searched anew: {why}" for name, why in update.searched.items()]
    told += [f"left: {', '.join(update.left)}"] if update.left else []
    for line in told[:ROWS]:
        console.print(Text(one_line(line, 500)), soft_wrap=True)
    print_left_out(console, len(told), "changes; summary.json has them")


def print_warnings(warnings: Sequence[str]) -> None:
    """A line for each."""
    console = table_console()
    for told in warnings[:ROWS]:
        console.print(Text("warning: ", "yellow") + Text(one_line(told, 500)))


def print_left_out(console: Console, count: int, kind: str) -> None:
    """Say how many rows a table lacks."""
    if count > ROWS:
        console.print(f"… and {count - ROWS:,} more {kind}", highlight=False)


def print_test_result(device: str, task: Task, result: Evaluation, samples: int) -> None:
    """One line; a text has several tokens that are judged."""
    tokens = f", {result.count:,} tokens" if task.per_token else ""
    table_console().print(
        f"{device}: {task.written(result)}, loss {result.loss:.4f} "
        f"on its {samples:,} test samples{tokens}"
    )
