"""A plan of Stratos in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from acme_fleet.report.intervals import wilson
from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.words import bytes_text, duration_text
from acme_fleet.stratos.predictors.estimate import MEASURED

if TYPE_CHECKING:
    from acme_fleet.stratos.calibration import Calibration
    from acme_fleet.stratos.plan import Choice, Group, Plan
    from acme_fleet.stratos.predictors.estimate import Estimate
    from acme_fleet.stratos.questions import QuestionSets
    from acme_fleet.stratos.request import Request

_MOST_ROWS = 12


def print_plan(request: Request, questions: QuestionSets, plan: Plan) -> None:
    """Everything that a plan found, in the order in which it was found."""
    console = table_console()
    console.print(
        f"{request.name}: {len(questions.train):,} questions to learn from, "
        f"{len(questions.test):,} held out, none of them in both; nothing is trained by a plan.",
        highlight=False,
    )
    _print_catalogue(console, plan)
    _print_pairs(console, plan)
    _print_exclusions(console, plan)
    if plan.groups:
        _print_choices(console, plan)
        _print_notes(console, plan)


def _print_catalogue(console: Console, plan: Plan) -> None:
    catalogue = plan.catalogue
    table = Table(title="rows and offers of the price lists that are left out")
    table.add_column("reason")
    table.add_column("number", justify="right")
    table.add_column("first")
    for reason, count, first in catalogue.reasons():
        detail = f" ({first.detail})" if first.detail else ""
        table.add_row(reason, f"{count:,}", f"{first.source}{detail}")
    if catalogue.dropped:
        console.print(table)
    measured = int(plan.speeds.calibrated.sum())
    dates = sorted({offer.price.date for offer in plan.offers})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    console.print(
        f"{catalogue.rows:,} rows were read; {len(plan.offers):,} offers are left, with prices of "
        f"{span} in US dollars. {measured:,} of them have measured constants, the others those of "
        f"data sheets and guesses of ours: not calibrated.",
        highlight=False,
    )


def _print_pairs(console: Console, plan: Plan) -> None:
    table = Table(title="pairs of teacher and student")
    table.add_column("pair", justify="right")
    for column in ("teacher", "student", "learns from"):
        table.add_column(column)
    for column in ("parameters", "as served", "accuracy"):
        table.add_column(column, justify="right")
    table.add_column("excluded")
    for pair in plan.pairs:
        student, pilot = pair.student, pair.student.pilot
        accuracy = "not known"
        if pilot is not None:
            low, high = wilson(pilot.correct / pilot.asked, pilot.asked)
            accuracy = f"{pilot.correct / pilot.asked:.3f} [{low:.3f}, {high:.3f}] {MEASURED}"
        exact = "" if student.cut_from else "≈ "
        table.add_row(
            str(plan.pairs.index(pair) + 1),
            pair.teacher.name,
            student.name,
            pair.by,
            f"{student.size.parameters:,}",
            f"{exact}{bytes_text(student.served_bytes)}",
            accuracy,
            pair.excluded or "",
        )
    console.print(table)


def _print_exclusions(console: Console, plan: Plan) -> None:
    """The number of candidates that each limit excludes; a candidate may miss several."""
    memory, total = plan.predictions.memory, plan.predictions.memory.size
    table = Table(title=f"{total:,} candidates, a pair on a server each: how many miss what")
    table.add_column("limit")
    table.add_column("bound", justify="right")
    table.add_column("excluded", justify="right")
    table.add_column("first")
    rows = [("memory of the accelerator", "", memory)]
    rows += [
        (limit.name, f"{limit.bound:g} {limit.unit}", keeps)
        for limit, keeps in zip(plan.limits, plan.keeps, strict=True)
    ]
    for name, bound, keeps in rows:
        first = ""
        if not keeps.all():
            pair, server = divmod(int((~keeps).argmax()), keeps.shape[1])
            first = f"pair {_number(plan, pair)} on {_server(plan, server)}"
        table.add_row(name, bound, f"{int((~keeps).sum()):,}", first)
    console.print(table)
    console.print(f"feasible: {int(plan.feasible.sum()):,} of {total:,}", highlight=False)


def _print_choices(console: Console, plan: Plan) -> None:
    """One front over all pairs, or the best server of each pair where pairs are not compared."""
    compared = "accuracy" in plan.groups[0].objectives
    for group in plan.groups if compared else ():
        title = f"the front: {len(group.front)} of {group.feasible:,} feasible candidates"
        _print_rows(console, plan, title, _front_rows(group))
        if len(group.front) > _MOST_ROWS:
            console.print(f"the {_MOST_ROWS} of the front with the best scores are shown")
    if not compared:
        rows = [("", group.chosen) for group in plan.groups]
        title = "the best server for each pair; a score compares the servers of one pair"
        _print_rows(console, plan, title, rows)
    for group in plan.groups:
        for limit in plan.at_risk(group.chosen):
            console.print(
                f"at risk: the error bar of pair {_number(plan, group.chosen.pair)} on "
                f"{_server(plan, group.chosen.server)} reaches over {limit.name} {limit.bound:g}",
                highlight=False,
            )


def _front_rows(group: Group) -> list[tuple[str, Choice]]:
    """The choice, the rest of the front by score, and what looking at one objective would take."""
    names: dict[tuple[int, int], list[str]] = {}
    for name, choice in (("chosen", group.chosen), *group.rivals.items()):
        names.setdefault((choice.pair, choice.server), []).append(name)
    front = sorted(group.front, key=lambda choice: -choice.score)[:_MOST_ROWS]
    rows = {(row.pair, row.server): row for row in (group.chosen, *front, *group.rivals.values())}
    return [(", ".join(names.get(place, [])), row) for place, row in rows.items()]


def _print_rows(
    console: Console, plan: Plan, title: str, rows: Sequence[tuple[str, Choice]]
) -> None:
    table = Table(title=title)
    for column in ("", "pair", "server", "billing"):
        table.add_column(column)
    for column in ("USD/h", "latency", "labels, training", "cost, USD", "score"):
        table.add_column(column, justify="right")
    table.add_column("source")
    for words, row in rows:
        bold = "bold" if words.startswith("chosen") else None
        table.add_row(words, *_cells(plan, row), style=bold)
    console.print(table)


def _cells(plan: Plan, choice: Choice) -> list[str]:
    of, offer = plan.predictions, plan.offers[choice.server]
    place = choice.pair, choice.server
    return [
        _number(plan, choice.pair),
        _server(plan, choice.server),
        offer.price.billing,
        f"{offer.price.amount:.4g}",
        _bar(of.latency, place, 1000, "ms"),
        _span(of.time, place),
        _bar(of.cost, place, 1, ""),
        f"{choice.score:.3f}",
        of.time.source(*place),
    ]


def _number(plan: Plan, pair: int) -> str:
    """The number that the table of pairs gives to one that is possible."""
    return str(plan.pairs.index(plan.possible[pair]) + 1)


def _bar(estimate: Estimate, place: tuple[int, int], factor: float, unit: str) -> str:
    ends = f"[{factor * estimate.low[place]:.3g}, {factor * estimate.high[place]:.3g}]"
    return f"{factor * estimate.value[place]:.3g} {ends} {unit}".rstrip()


def _span(estimate: Estimate, place: tuple[int, int]) -> str:
    ends = ", ".join(duration_text(float(e[place])) for e in (estimate.low, estimate.high))
    return f"{duration_text(float(estimate.value[place]))} [{ends}]"


def _server(plan: Plan, server: int) -> str:
    offer = plan.offers[server]
    count = f"{offer.count} × {offer.accelerator}" if offer.accelerator else "processor"
    return f"{offer.provider} {offer.instance} ({count}), {offer.region}"


def _print_notes(console: Console, plan: Plan) -> None:
    if any("accuracy" not in group.objectives for group in plan.groups):
        console.print(
            "Accuracy is not known for every feasible pair, so that pairs are not compared: each "
            "has its own best server. A pilot's measured accuracy of each student "
            "(`pilot` in the table of pairs) lets them be compared; none is guessed from a size.",
            highlight=False,
        )
    undecided = sum(pair.student.pilot is None for pair in plan.possible)
    if undecided and any(limit.name == "min_accuracy" for limit in plan.limits):
        console.print(
            f"min_accuracy is not decided for {undecided} of {len(plan.possible)} pairs: it "
            f"excludes none whose accuracy is not known.",
            highlight=False,
        )
    console.print(
        "In brackets: error bars. A source `not calibrated` means speeds of a data sheet times "
        "guessed shares, from half to twice the value; `acme distill probe` on such a machine "
        "replaces them. One accelerator of a server is used, and all of it is paid.",
        highlight=False,
    )


def print_calibration(calibration: Calibration) -> None:
    """Constants that a probe measured, with predicted ÷ measured on what was left out."""
    console = table_console()
    console.print(
        f"{calibration.machine}, {calibration.numbers}: a large matrix product "
        f"{calibration.matmul_flops / 1e9:.3g} GFLOP/s, a large copy "
        f"{calibration.copy_bytes / 1e9:.3g} GB/s",
        highlight=False,
    )
    constants = Table(title="constants of the predictors")
    constants.add_column("work")
    for column in ("a second", "share of the largest", "a layer adds", "error"):
        constants.add_column(column, justify="right")
    peaks = {
        "training": ("GFLOP", calibration.matmul_flops),
        "prefill": ("GFLOP", calibration.matmul_flops),
        "decoding": ("GB", calibration.copy_bytes),
    }
    for name, (unit, peak) in peaks.items():
        rate = getattr(calibration, name)
        constants.add_row(
            name,
            f"{rate.per_second / 1e9:.3g} {unit}",
            f"{rate.per_second / peak:.2f}",
            f"{1e3 * rate.layer_s:.3g} ms",
            f"{rate.error:.0%}",
        )
    memory = calibration.memory
    constants.add_row("memory", "", "", f"× {memory.factor:.3g}", f"{memory.error:.0%}")
    console.print(constants)
    table = Table(title="each configuration, predicted from the others")
    for column in ("work", "model"):
        table.add_column(column)
    for column in ("measured", "predicted", "predicted ÷ measured"):
        table.add_column(column, justify="right")
    for each in calibration.timings:
        table.add_row(
            *(each.kind, each.model, duration_text(each.seconds), duration_text(each.left_out_s)),
            f"{each.left_out_s / each.seconds:.2f}",
        )
    for each in calibration.footprints:
        corrected = each.predicted_bytes * memory.factor
        table.add_row(
            *("memory", each.model, bytes_text(each.bytes), bytes_text(corrected)),
            f"{corrected / each.bytes:.2f}",
        )
    console.print(table)
