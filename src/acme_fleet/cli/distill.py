"""Stratos: a language model for rented servers, under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acme_fleet.cli.app import app, say

distill = typer.Typer(
    no_args_is_help=True,
    help="Plan a distilled language model for rented servers, under a budget.",
)
app.add_typer(distill, name="distill")

TaskFile = Annotated[Path, typer.Argument(help="A task file (YAML).", show_default=False)]


@distill.command()
def init(path: TaskFile) -> None:
    """Write a commented example task file, and beside it the files that it names."""
    from acme_fleet.stratos.example_files import write_example

    written = write_example(path)
    say(f"wrote {', '.join(str(each) for each in written)}")
    say(f"look at its plan with: acme distill plan {path}")


@distill.command()
def plan(path: TaskFile) -> None:
    """Servers, pairs, predicted cost and time, and reasons; nothing is trained."""
    from acme_fleet.report.terminal.distill import print_plan
    from acme_fleet.stratos.checkers import try_checker
    from acme_fleet.stratos.plan import make_plan
    from acme_fleet.stratos.questions import read_questions
    from acme_fleet.stratos.relaxation import check_feasible
    from acme_fleet.stratos.request import Request

    request = Request.from_yaml(path)
    questions = read_questions(request.data)
    try_checker(request.checker, questions.train)
    found = make_plan(request)
    print_plan(request, questions, found)
    check_feasible(found)


@distill.command()
def probe(
    out: Annotated[Path, typer.Option(help="File of the calibration; must be new.")],
    accelerator: Annotated[
        str | None,
        typer.Option(help="Measure the first NVIDIA GPU; its name as in price lists, such as L4."),
    ] = None,
) -> None:
    """Measure this machine: what predictions of time and memory need to be calibrated."""
    from acme_fleet.errors import FleetError
    from acme_fleet.report.terminal.distill import print_calibration
    from acme_fleet.report.terminal.run import LiveStages
    from acme_fleet.stratos.calibration import write_calibration
    from acme_fleet.stratos.probe import probe as measure

    if out.exists():
        raise FleetError(f"{out} exists already; it was not changed")
    with LiveStages() as stages:
        found = measure(
            accelerator,
            progress=lambda stage, done, total: stages.stage("probe", stage, done, total),
        )
    print_calibration(found)
    write_calibration(found, out)
    say(f"wrote {out}; name it as `calibration` of this machine, or in `calibrations` of a task")


@distill.command()
def strategy(
    path: TaskFile,
    replies: Annotated[
        Path,
        typer.Argument(
            help="A teacher's replies to questions of data.train (JSON Lines: question, reply).",
            show_default=False,
        ),
    ],
) -> None:
    """Mark a teacher's replies with the task's checker: alignment, injection, or mixed."""
    from acme_fleet.stratos.checkers import try_checker
    from acme_fleet.stratos.questions import read_questions
    from acme_fleet.stratos.request import Request
    from acme_fleet.stratos.strategy import measure_coverage

    request = Request.from_yaml(path)
    questions = read_questions(request.data)
    try_checker(request.checker, questions.train)
    found = measure_coverage(request, questions.train, replies)
    say(f"{found.strategy}: {found.reason}")
