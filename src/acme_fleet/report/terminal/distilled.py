"""A distillation in the terminal: what was measured, beside what was predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from acme_fleet.outside import one_line
from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.words import duration_text

if TYPE_CHECKING:
    from acme_fleet.stratos.run_directory import DistillSummary, Marked, Prediction

_LONGEST = 160  # characters of a text in the table of examples


def print_distilled(summary: DistillSummary) -> None:
    """The whole summary."""
    console, chosen = table_console(), summary.chosen
    texts = ", ".join(f"{count:,} {name}" for name, count in summary.texts.items() if count)
    console.print(
        f"{summary.name}: {chosen.pair} by {chosen.by} on {chosen.server}, "
        f"{chosen.usd_per_hour:.4g} USD/h; {summary.params:,} parameters; texts: {texts}",
        highlight=False,
    )
    console.print(ending_text(summary), highlight=False)
    console.print(_accuracies(summary))
    losses = Table(title="loss per token on texts held out from training")
    for column in ("texts", "before training", "student"):
        losses.add_column(column)
    for name, loss in (("all", summary.validation), ("replayed", summary.replayed)):
        if loss is not None:
            losses.add_row(name, f"{loss.start:.3f}", f"{loss.student:.3f}")
    console.print(losses)
    console.print(_costs(summary))
    console.print(_latencies(summary))
    console.print(_examples(summary))
    if (wanted := summary.min_accuracy) is not None:
        console.print(accuracy_verdict(summary.student, wanted), highlight=False)
    console.print(latency_verdict(summary), highlight=False)
    console.print(instead_text(summary), highlight=False)


def ending_text(summary: DistillSummary) -> str:
    """The number of steps, and the one whose student is kept."""
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
        table.add_row(name, f"{marked.right:,}", share_text(marked))
    if (pilot := summary.chosen.pilot) is not None:
        right, asked = pilot
        told = f"{right:,} of {asked:,}", f"{right / asked:.3f}"
        table.add_row("pilot in the table of pairs", *told)
    return table


def share_text(marked: Marked) -> str:
    """The share of right answers with its interval."""
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


def _latencies(summary: DistillSummary) -> Table:
    chosen, served = summary.chosen, summary.served
    table = Table(
        title=f"latency in ms, one question at a time, of {served.answers} held-out questions"
    )
    for column in ("", "predicted", "measured here", "the teacher here"):
        table.add_column(column)
    time = chosen.latency_s
    ends = ", ".join(f"{1000 * each:.0f}" for each in (time.low, time.high))
    predicted = f"{1000 * time.value:.0f} [{ends}], {time.source}"
    rows = {
        "answer, 95 of 100": (predicted, "p95_s"),
        "answer, median": ("", "p50_s"),
        "first token, 95 of 100": ("", "first_p95_s"),
        "first token, median": ("", "first_p50_s"),
    }
    for name, (told, key) in rows.items():
        both = (f"{1000 * getattr(each, key):.1f}" for each in (served, summary.taught))
        table.add_row(name, told, *both)
    return table


def _examples(summary: DistillSummary) -> Table:
    table = Table(title="the first held-out questions", show_lines=True)
    for column in ("question", "answer", "student", "before training", "teacher"):
        table.add_column(column, overflow="fold")
    for each in summary.examples:
        replies = (each.student, each.start, each.teacher)
        told = [f"{'right' if one.right else 'wrong'}: {_cut(one.text)}" for one in replies]
        table.add_row(*(escape(text) for text in (_cut(each.question), _cut(each.answer), *told)))
    return table


def _cut(text: str) -> str:
    return one_line(text, _LONGEST)


def latency_verdict(summary: DistillSummary) -> str:
    """The measured latency, held against the task's limit where it has one."""
    most, served = summary.max_p95_latency_ms, summary.served
    told = 1000 * served.p95_s
    if most is None:
        return f"95 of 100 answers took at most {told:.1f} ms on the machine of this run"
    word = "missed" if told > most else "kept"
    return f"max_p95_latency_ms {most:g} is {word} on the machine of this run: {told:.1f}"


def instead_text(summary: DistillSummary) -> str:
    """The teacher in place of the student, at the same price of an hour."""
    price = summary.chosen.usd_per_hour
    own, other = (each.usd_per_thousand(price) for each in (summary.served, summary.taught))
    text = (
        f"the teacher instead: {share_text(summary.teacher)} right; a thousand answers, one after "
        f"the other on this machine, cost {other:.3g} USD, the student's {own:.3g}"
    )
    if other > own and summary.training_usd > 0:
        text += f": training is repaid after {1000 * summary.training_usd / (other - own):,.0f}"
    return text


def _money(predicted: Prediction) -> str:
    return f"{predicted.value:.3g} [{predicted.low:.3g}, {predicted.high:.3g}]"


def accuracy_verdict(marked: Marked, wanted: float) -> str:
    """The measured accuracy, held against the task's ``min_accuracy``."""
    share = marked.right / marked.asked
    if share < wanted:
        return f"min_accuracy {wanted:g} is missed: {share:.3f}"
    sure = "" if marked.low >= wanted else ", though its interval reaches below"
    return f"min_accuracy {wanted:g} is reached: {share:.3f}{sure}"
