"""A distillation in the terminal: what was measured, beside what was predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.words import duration_text

if TYPE_CHECKING:
    from acme_fleet.stratos.run_directory import DistillSummary, Marked, Prediction


def print_distilled(summary: DistillSummary) -> None:
    """The whole summary."""
    console, chosen = table_console(), summary.chosen
    texts = ", ".join(f"{count:,} {name}" for name, count in summary.texts.items() if count)
    console.print(
        f"{summary.name}: {chosen.pair} by {chosen.by} on {chosen.server}, "
        f"{chosen.usd_per_hour:.4g} USD/h; {summary.params:,} parameters; texts: {texts}",
        highlight=False,
    )
    console.print(_ending(summary), highlight=False)
    console.print(_accuracies(summary))
    losses = Table(title="loss per token on texts held out from training")
    for column in ("texts", "before training", "student"):
        losses.add_column(column)
    for name, loss in (("all", summary.validation), ("replayed", summary.replayed)):
        if loss is not None:
            losses.add_row(name, f"{loss.start:.3f}", f"{loss.student:.3f}")
    console.print(losses)
    console.print(_costs(summary))
    if (wanted := summary.min_accuracy) is not None:
        console.print(_verdict(summary.student, wanted), highlight=False)


def _ending(summary: DistillSummary) -> str:
    told = f"{summary.steps:,} of {summary.planned_steps:,} steps"
    if summary.ended_by == "budget":
        told += ", where the budget ended"
    if summary.best_step == 0:
        return f"{told}; no step made it better: the student is as it began"
    return f"{told}; the student is that of step {summary.best_step:,}, the best by validation"


def _accuracies(summary: DistillSummary) -> Table:
    table = Table(title=f"accuracy on {summary.student.asked:,} held-out questions, measured")
    for column in ("model", "right", "accuracy, 95 %"):
        table.add_column(column)
    rows = {
        "student": summary.student,
        "student before training": summary.start,
        "teacher": summary.teacher,
    }
    for name, marked in rows.items():
        table.add_row(name, f"{marked.right:,}", _share(marked))
    if (pilot := summary.chosen.pilot) is not None:
        right, asked = pilot
        told = f"{right:,} of {asked:,}", f"{right / asked:.3f}"
        table.add_row("pilot in the table of pairs", *told)
    return table


def _share(marked: Marked) -> str:
    return f"{marked.right / marked.asked:.3f} [{marked.low:.3f}, {marked.high:.3f}]"


def _costs(summary: DistillSummary) -> Table:
    chosen = summary.chosen
    table = Table(title="time and money")
    for column in ("", "predicted", "measured"):
        table.add_column(column)
    time = chosen.training_s
    ends = ", ".join(duration_text(each) for each in (time.low, time.high))
    table.add_row(
        "training (predicted: with labels)",
        f"{duration_text(time.value)} [{ends}], {time.source}",
        duration_text(summary.training_s),
    )
    table.add_row("its cost, USD", _money(chosen.training_usd), f"{summary.training_usd:.3g}")
    table.add_row("evaluation", "", duration_text(summary.evaluation_s))
    table.add_row("its cost, USD", "", f"{summary.evaluation_usd:.3g}")
    return table


def _money(predicted: Prediction) -> str:
    return f"{predicted.value:.3g} [{predicted.low:.3g}, {predicted.high:.3g}]"


def _verdict(marked: Marked, wanted: float) -> str:
    share = marked.right / marked.asked
    if share < wanted:
        return f"min_accuracy {wanted:g} is missed: {share:.3f}"
    sure = "" if marked.low >= wanted else ", though its interval reaches below"
    return f"min_accuracy {wanted:g} is reached: {share:.3f}{sure}"
