"""Why devices get the backbones that they get, in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from acme_fleet.config.devices import Precision
from acme_fleet.outside import listed
from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.terminal.run import ROWS, print_left_out
from acme_fleet.report.words import (
    accuracy_text,
    bytes_text,
    energy_text,
    header_text,
    perplexity_text,
    ten_lines_text,
)

if TYPE_CHECKING:
    from acme_fleet.config.devices import Device
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.inspection.explain import DeviceChoice, Explanation
    from acme_fleet.inspection.plan import Plan
    from acme_fleet.runs.summary import Candidate


# --- before a run -----------------------------------------------------------------------------


def print_limits(fleet: Fleet, plan: Plan) -> None:
    """Print the candidates that fit each cluster as a whole, and its devices alone."""
    table = Table(title="what the limits admit: a cluster's, and its devices' own")
    table.add_column("cluster")
    table.add_column("devices")
    for column in ("storage", "candidates", "largest"):
        table.add_column(column, justify="right")
    together = fleet.selection.matching == "cluster"
    for cluster in fleet.clusters[:ROWS]:
        limit = plan.limits[cluster.name]
        members: dict[tuple[str, str], list[Device]] = {}
        for device in sorted(cluster.devices, key=lambda device: device.storage):
            admitted = _admitted(plan, device.storage, device.precisions)
            members.setdefault(admitted, []).append(device)
        count = len(cluster.devices)
        admitted = _admitted(plan, limit, cluster.precisions)
        words = f"all {count}, one backbone" if together else f"all {count}"
        table.add_row(cluster.name, words, bytes_text(limit), *admitted)
        alike = len({(device.storage, device.precisions) for device in cluster.devices}) == 1
        for own, group in members.items() if not alike else ():
            ends = dict.fromkeys(bytes_text(group[end].storage) for end in (0, -1))
            table.add_row(
                "",
                listed([device.name for device in group]),
                " – ".join(ends),
                *own,
            )
    console = table_console()
    console.print(table)
    print_left_out(console, len(fleet.clusters), "clusters")
    if not together:
        console.print("matching: device. Each device gets a backbone by its own limits.")


def _admitted(plan: Plan, limit: int, executed: Collection[Precision]) -> tuple[str, str]:
    sizes = plan.fitting(limit, executed)
    largest = f"{sizes[-1]:,}" if len(sizes) else "nothing fits"
    return f"{len(sizes)} of {len(plan.sizes)}", largest


# --- one device -------------------------------------------------------------------------------


def print_explanation(found: Explanation) -> None:
    """The limit, every candidate with a verdict, the reason, and what other limits would buy."""
    console = table_console()
    device, cluster = found.device, found.cluster
    together = found.selection.matching == "cluster"
    whose = (
        f"{device.name} is in cluster {cluster.name}, all of whose devices have one backbone."
        if together
        else f"matching: device. {device.name} was matched by its own limits, and is in the group "
        f"{cluster.name} of those that got the same backbone."
    )
    limit = f"Limit: {cluster.storage_limit_bytes:,} bytes, the storage of"
    if device.storage == cluster.storage_limit_bytes:
        limit = f"{limit} {device.name} itself."
    else:
        limit = f"{limit} {found.smallest.name}; {device.name} stores {device.storage:,}."
    console.print(f"{whose} {limit}", highlight=False)
    _print_candidates(console, found)
    _print_choice(console, found)
    if found.kept is not None:
        console.print(
            f"An update kept w, d = {_name(cluster.candidates[found.kept])}, which the devices had "
            f"and which still fits; --refresh lets the rule choose.",
            highlight=False,
        )
    _print_limits(console, found)
    if words := header_text(cluster.contenders):
        console.print(f"The header was {words}.", highlight=False)
    _print_measured(console, found)


def _print_candidates(console: Console, found: Explanation) -> None:
    candidates = found.cluster.candidates
    table = Table(title="candidates by size; Ψ: grid coordinates of loss, energy and size")
    for column in ("w, d", "bytes", "loss", "energy", "Ψ"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    coordinates = dict(zip(found.match.feasible.tolist(), found.match.coordinates, strict=True))
    for row in np.argsort([c.size_bytes for c in candidates], kind="stable").tolist():
        candidate = candidates[row]
        table.add_row(
            _name(candidate),
            f"{candidate.size_bytes:,}",
            f"{'≈ ' if candidate.estimated else ''}{candidate.loss:.4f}",
            energy_text(candidate.energy_j),
            " ".join(map(str, coordinates[row])) if row in coordinates else "–",
            found.verdict(row),
            style="bold" if row == found.match.chosen else None,
        )
    console.print(table)


def _print_choice(console: Console, found: Explanation) -> None:
    candidates, settings = found.cluster.candidates, found.selection
    best = min((candidates[row] for row in found.match.feasible), key=lambda c: c.loss)
    kind = "grid coordinates" if settings.rule == "literal" else "the objectives themselves"
    chosen = candidates[found.match.chosen]
    tried = {c.variant.trained: c for c in candidates if c.recovered_loss is not None}
    reason = (
        f"Of these w, d = {_name(chosen)} is nearest to the ideal point (rule {settings.rule}: in "
        f"{kind})."
        if not tried
        else f"{len(tried)} shapes spread over the front were tried, trained alone for a share of "
        f"the recovery: then w, d = {_name(chosen)} was the choice by the same rule "
        f"({settings.rule}: in {kind}).{_grown(tried.values())}"
    )
    console.print(
        f"The best performer that fits is w, d = {_name(best)} with loss {best.loss:.4f}. "
        f"The performance window γ_p = {settings.performance_window:g} gives intervals of "
        f"{found.window_end - best.loss:.4f}: losses up to {found.window_end:.4f} compete. "
        f"Candidates of the front that do: {len(found.distances)} of {len(found.match.front)}. "
        f"{reason}",
        highlight=False,
    )
    if chosen.variant.trained != best.variant.trained:
        console.print(
            "Less loss, for more energy and size and within the same limit, is what a smaller "
            "selection.performance_window would choose.",
            highlight=False,
        )


def _grown(tried: Iterable[Candidate]) -> str:
    """A reason for losses that a trial leaves larger than they were, and for those as they were."""
    told, changes = "", [((c.recovered_loss or 0) - c.loss, c) for c in tried]
    if same := [_name(c) for change, c in changes if change == 0]:
        told += f" w, d = {'; '.join(same[:3])} has nobody to learn from and stays as it was."
    if grown := [_name(c) for change, c in changes if change > 0]:
        told += (
            f" Losses of w, d = {'; '.join(grown[:3])} have grown: a training begins anew at its "
            f"full learning rate, and the share was too short, or the public samples too few, to "
            f"come back. More recovery epochs or fewer selection.finalists give each more."
        )
    return told


def _print_limits(console: Console, found: Explanation) -> None:
    candidates, now = found.cluster.candidates, found.cluster.candidates[found.match.chosen]
    table = Table(title=f"what other limits would buy; energy of {found.device.name} itself")
    table.add_column("limit", no_wrap=True)
    for column in ("bytes", "w, d", "size", "loss", "accuracy", "energy"):
        table.add_column(column, justify="right")

    def add(words: str, limit: int, row: int) -> None:
        other, own = candidates[row], found.own_energy_j
        differences = (
            _change(other.size_bytes - now.size_bytes, bytes_text),
            f"{other.loss - now.loss:+.4f}",
            _points(other.accuracy, now.accuracy),
            _change(float(own[row] - own[found.match.chosen]), energy_text),
        )
        same = row == found.match.chosen
        table.add_row(words, f"{limit:,}", _name(other), *(("the same",) if same else differences))

    table.add_row(
        "now",
        f"{found.cluster.storage_limit_bytes:,}",
        *(_name(now), bytes_text(now.size_bytes), f"{now.loss:.4f}", accuracy_text(now.accuracy)),
        energy_text(float(found.own_energy_j[found.match.chosen])),
    )
    for words, option in zip(("next larger", "first change"), found.larger, strict=False):
        add(words, option.limit_bytes, option.chosen)
    add(f"{found.device.name} alone", found.alone.limit_bytes, found.alone.chosen)
    console.print(table)
    if found.larger:
        console.print(
            "A larger limit may change the choice for a model that fits already: distances are to "
            "the best of what fits."
        )
    else:
        console.print("Every candidate fits: a larger limit buys nothing.")
    console.print(_measured_on(found.cluster.candidates))
    if any(candidate.recovered_loss is not None for candidate in candidates):
        console.print("Losses and choices by other limits are those before recovery.")


def _print_measured(console: Console, found: Explanation) -> None:
    if (own := found.measured) is None:
        return
    of = "" if own.language is None else ", share of tokens"
    words = (
        f"On the test data of {own.name}{of}: coarse header {own.accuracy_coarse:.3f}, linear "
        f"header {own.accuracy_linear:.3f}, final {own.accuracy:.3f} ({bytes_text(own.size_bytes)})"
    )
    if (probe := found.probe) and own.accuracy_probe is not None:
        words += (
            f"; without the method: {ten_lines_text(probe.pooling)}, "
            f"{bytes_text(probe.size_bytes_int8)}: {own.accuracy_probe:.3f}, the mean of all "
            f"devices' regressions {own.accuracy_probe_averaged:.3f}"
        )
    if (language := own.language) is not None:
        losses = language.loss_coarse, language.loss_linear, language.loss
        words += f". Perplexities of the three: {', '.join(map(perplexity_text, losses))}"
    console.print(f"{words}.", highlight=False)


def _measured_on(candidates: Sequence[Candidate]) -> str:
    some = any(candidate.estimated for candidate in candidates)
    estimates = " Where they stand after ≈, a few of these samples tell them." if some else ""
    if any(candidate.accuracy is None for candidate in candidates):
        return (
            "Loss: squared error of the pooled features over the reference's variance, public "
            "validation data without labels. The accuracy is not known."
        ) + estimates
    return (
        f"Loss and accuracy: public validation data, the reference's own classifier or language "
        f"head.{estimates}"
    )


def _points(other: float | None, now: float | None) -> str:
    return "–" if other is None or now is None else f"{other - now:+.3f}"


def _name(candidate: Candidate) -> str:
    return candidate.variant.brief


def _change(difference: float, words: Callable[[float], str]) -> str:
    return f"{'-' if difference < 0 else '+'}{words(abs(difference))}"


# --- the whole fleet --------------------------------------------------------------------------


def print_matching(choices: Sequence[DeviceChoice]) -> None:
    """One backbone for a cluster beside one for each device, and what each buys on average."""
    table = Table(title="the backbone as run, and the one for each device alone")
    table.add_column("device")
    for column in ("storage", "w, d", "loss", "energy", "alone", "loss", "energy"):
        table.add_column(column, justify="right")
    for choice in choices[:ROWS]:
        table.add_row(
            choice.device.name,
            bytes_text(choice.device.storage),
            *(_name(choice.cluster), f"{choice.cluster.loss:.4f}"),
            energy_text(choice.cluster_energy_j),
            *(_name(choice.alone), f"{choice.alone.loss:.4f}"),
            energy_text(choice.alone_energy_j),
        )
    console = table_console()
    console.print(table)
    print_left_out(console, len(choices), "devices")
    means = Table(title="mean over the devices")
    for column in ("", "loss", "accuracy", "energy", "size", "backbones"):
        means.add_column(column, justify="left" if not column else "right")
    together = [(choice.cluster, choice.cluster_energy_j) for choice in choices]
    alone = [(choice.alone, choice.alone_energy_j) for choice in choices]
    means.add_row("as run", *_means(together))
    means.add_row("for each device", *_means(alone))
    console.print(means)
    console.print(_measured_on([choice.alone for choice in choices]))
    if any(choice.cluster.recovered_loss is not None for choice in choices):
        console.print("As run: chosen after recovery of some; alone: by the losses before it.")


def _means(choices: Iterable[tuple[Candidate, float]]) -> tuple[str, ...]:
    candidates, energies = zip(*choices, strict=True)
    known = [c.accuracy for c in candidates if c.accuracy is not None]
    return (
        f"{fmean(c.loss for c in candidates):.4f}",
        accuracy_text(None if len(known) < len(candidates) else fmean(known)),
        energy_text(fmean(energies)),
        bytes_text(fmean(c.size_bytes for c in candidates)),
        str(len({c.variant for c in candidates})),
    )
