"""Stratos: a language model for rented servers, under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acme_fleet.cli.app import DISTIL, Host, Port, Token, app, called, say
from acme_fleet.cli.signals import stop_explained

distill = typer.Typer(
    no_args_is_help=True,
    help="Plan and distil a language model for rented servers, under a budget.",
)
app.add_typer(distill, name="distill", rich_help_panel=DISTIL)

TaskFile = Annotated[Path, typer.Argument(help="A task file (YAML).", show_default=False)]


@distill.command()
def init(path: TaskFile) -> None:
    """Write a commented example task file, and beside it the files that it names."""
    from acme_fleet.stratos.example_files import write_example

    written = write_example(path)
    say(f"wrote {', '.join(str(each) for each in written)}")
    say(f"look at its plan with: {called()} distill plan {path}")


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
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.runs.atomic import check_writable
    from acme_fleet.stratos.calibration import write_calibration
    from acme_fleet.stratos.probe import probe as measure

    if out.exists():
        raise FleetError(f"{out} exists already; it was not changed")
    check_writable(out)
    with LiveStages() as stages:
        found = measure(
            accelerator,
            progress=lambda stage, done, total: stages.stage("probe", stage, done, total),
        )
    print_calibration(found)
    write_calibration(found, out)
    say(f"wrote {out}; name it as `calibration` of this machine, or in `calibrations` of a task")


@distill.command()
def ask(
    path: TaskFile,
    out: Annotated[Path, typer.Option(help="File of the replies; one that is there goes on.")],
    teacher: Annotated[
        str | None, typer.Option(help="Name in the table of pairs; the only one by default.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Questions to ask; coverage.questions by default.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the answer, and ask for the steps to it.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run on the first NVIDIA GPU.")] = False,
) -> None:
    """Let a teacher answer labelled questions, here; it goes on where it was interrupted."""
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.runs.locks import held_file
    from acme_fleet.stratos.pairs import read_pairs, teacher_named
    from acme_fleet.stratos.questions import read_questions
    from acme_fleet.stratos.request import Request
    from acme_fleet.stratos.teacher import LanguageTeacher, drawn_questions
    from acme_fleet.stratos.teacher import ask as ask_all
    from acme_fleet.training.precision import training_device

    request = Request.from_yaml(path)
    questions = drawn_questions(request, read_questions(request.data).train, count)
    named = teacher_named(read_pairs(request.pairs), teacher)
    place = training_device("cuda" if gpu else "cpu", "--gpu")
    again = f"what is answered is in {out}; the same command goes on"
    with stop_explained(again), held_file(out), LiveStages() as stages:
        found = ask_all(
            request,
            LanguageTeacher(named, place),
            questions,
            out,
            lambda done, total: stages.stage("teacher", "questions", done, total),
            explain=explain,
        )
    say(f"{found.replies} replies, {found.before} were there: {out}")
    if found.replies:
        workload = request.workload
        say(
            f"{found.written / found.seconds:.3g} tokens a second in batches of "
            f"{workload.label_batch}; of 95 of 100 questions prompts have {found.prompt_tokens} "
            f"tokens at most (workload.prompt_tokens: {workload.prompt_tokens}), answers "
            f"{found.answer_tokens} ({workload.answer_tokens}); {found.cut} answers were cut off"
        )
    if not explain:
        say(f"mark them with: {called()} distill strategy {path} {out}")
    say(f"data of the right ones: {called()} distill keep {path} {out} --out DATA.jsonl")


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


@distill.command()
def keep(
    path: TaskFile,
    replies: Annotated[
        Path, typer.Argument(help="A teacher's replies (JSON Lines).", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="File of the data (JSON Lines); must be new.")],
) -> None:
    """Make data of the replies that the checker accepts."""
    from acme_fleet.stratos.checkers import try_checker
    from acme_fleet.stratos.injection import write_data
    from acme_fleet.stratos.questions import read_questions
    from acme_fleet.stratos.replies import learnable, read_replies
    from acme_fleet.stratos.request import Request

    request = Request.from_yaml(path)
    questions = read_questions(request.data)
    try_checker(request.checker, questions.train)
    found, explained = read_replies(request, questions.train, replies)
    rows = learnable(request, found)
    write_data(rows, out)
    shown = ", which was shown the answers" if explained else ""
    say(f"wrote {out}: {len(rows)} of {len(found)} replies of the teacher{shown}, the right ones")


@distill.command()
def inject(
    path: TaskFile,
    out: Annotated[Path, typer.Option(help="File of the data (JSON Lines); must be new.")],
    count: Annotated[int, typer.Option(min=1, help="Questions to make.")] = 1000,
) -> None:
    """Make questions from known answers with the task's program; each is checked."""
    from acme_fleet.errors import FleetError
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.runs.atomic import check_writable
    from acme_fleet.stratos.checkers import try_checker
    from acme_fleet.stratos.injection import make_data, write_data
    from acme_fleet.stratos.questions import read_questions
    from acme_fleet.stratos.request import Request

    if out.exists():
        raise FleetError(f"{out} exists already; it was not changed")
    check_writable(out)
    request = Request.from_yaml(path)
    questions = read_questions(request.data)
    try_checker(request.checker, questions.train)
    with LiveStages() as stages:
        made = make_data(
            request,
            count,
            questions.test,
            lambda done, total: stages.stage("program", "questions", done, total),
        )
    write_data(made.rows, out)
    say(
        f"wrote {out}: {len(made.rows)} questions, whose replies the checker accepts; left out: "
        f"{made.repeated} that came again, {made.held_out} that are held out"
    )


@distill.command()
def run(
    path: TaskFile,
    out: Annotated[Path, typer.Option(help="Run directory; must be new or empty.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on, if a run was interrupted there.")
    ] = False,
    pair: Annotated[
        str | None, typer.Option(help="A pair as the plan names it; the plan's pick by default.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="This machine's name in the price lists; likewise.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run on the first NVIDIA GPU.")] = False,
) -> None:
    """Distil a student from the task's data within the budget, and mark its answers."""
    from acme_fleet.report.distilled_page import write_distilled
    from acme_fleet.report.terminal.distilled import print_distilled
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.stratos.distill import distil
    from acme_fleet.stratos.request import Request
    from acme_fleet.stratos.run_directory import DistillDirectory
    from acme_fleet.training.precision import training_device

    request, place = Request.from_yaml(path), training_device("cuda" if gpu else "cpu", "--gpu")
    directory = DistillDirectory(out)
    with stop_explained(f"go on with: {directory.resume_command}"), LiveStages() as stages:
        summary = distil(
            request,
            out,
            pair=pair,
            server=server,
            resume=resume,
            device=place,
            stage=stages.stage,
        )
    print_distilled(summary)
    write_distilled(summary, directory.page)
    say(f"the student: {directory.student}; the report: {directory.page}")


@distill.command()
def serve(
    path: Annotated[
        Path, typer.Argument(help="A directory of `acme distill run`.", show_default=False)
    ],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    token: Token = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run on the first NVIDIA GPU.")] = False,
) -> None:
    """Answer with the student, here, in OpenAI's form (/v1/completions and chats)."""
    from acme_fleet.report.terminal.distilled import latency_verdict
    from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary
    from acme_fleet.stratos.serving import StudentWriter
    from acme_fleet.training.precision import training_device
    from acme_fleet_runtime.server import serve

    run = DistillDirectory.open(path)
    summary = DistillSummary.read(run.finished())
    place = training_device("cuda" if gpu else "cpu", "--gpu")
    writer = StudentWriter(run.student, summary.name, summary.precision, place)
    say(latency_verdict(summary))
    serve(writer, host, port, token, say)


@distill.command()
def deploy(
    path: Annotated[
        Path, typer.Argument(help="A directory of `acme distill run`.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
) -> None:
    """Write files that serve the student with vLLM on the chosen server; nothing is started."""
    from acme_fleet.stratos.deployment import write_serving
    from acme_fleet.stratos.request import Request
    from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary

    run = DistillDirectory.open(path)
    summary = DistillSummary.read(run.finished())
    concurrency = Request.from_yaml(run.path / run.document).workload.concurrency
    written = write_serving(summary, run.student, concurrency, out)
    say(f"wrote {', '.join(str(out / name) for name in written)}; nothing was started")


@distill.command()
def export(
    path: Annotated[
        Path, typer.Argument(help="A directory of `acme distill run`.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")],
    format_name: Annotated[str, typer.Option("--format", help="gguf or onnx.")] = "gguf",
    force: Annotated[
        bool, typer.Option("--force", help="Write what the verification refuses.")
    ] = False,
) -> None:
    """Write the student at its precision for llama.cpp or ONNX Runtime, verified against PyTorch.

    \b
    acme distill export runs/sums --out student                  # student/model.gguf
    acme distill export runs/sums --format onnx --out student    # then: acme serve student
    """
    from acme_fleet.cli.deploy import tell_exported
    from acme_fleet.deploy.export import export
    from acme_fleet.deploy.student import origin_of_student
    from acme_fleet.errors import FleetError
    from acme_fleet.stratos.run_directory import DistillDirectory

    run = DistillDirectory.open(path)
    if format_name == "safetensors":
        raise FleetError(f"--format safetensors: {run.student} is that already")
    origin = origin_of_student(run)
    tell_exported(export(origin, format_name, out, force=force))


@distill.command()
def report(
    path: Annotated[
        Path, typer.Argument(help="A directory of `acme distill run`.", show_default=False)
    ],
) -> None:
    """Print what a run measured beside what was predicted, and write report.html anew."""
    from acme_fleet.report.distilled_page import write_distilled
    from acme_fleet.report.terminal.distilled import print_distilled
    from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary

    run = DistillDirectory.open(path)
    summary = DistillSummary.read(run.finished())
    print_distilled(summary)
    write_distilled(summary, run.page)
    say(f"the report: {run.page}")
