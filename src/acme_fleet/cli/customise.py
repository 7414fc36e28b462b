"""From a fleet file to models: plan, run, look at, use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acme_fleet.cli.app import app, say
from acme_fleet.cli.hosts import need_flower
from acme_fleet.cli.signals import exit_code

if TYPE_CHECKING:
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.runs.journal import Observer
    from acme_fleet.runs.summary import Summary
    from acme_fleet_runtime.answers import Classifier

Out = Annotated[Path | None, typer.Option(help="Run directory; must be new or empty.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Overrides the fleet's seed.")]
FleetFile = Annotated[Path, typer.Argument(help="A fleet file (YAML).", show_default=False)]
RunDir = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
Engine = Literal["embedded", "flower"]

EXAMPLE = Path(__file__).parents[1] / "demo.yaml"


@app.command()
def demo(out: Out = Path("runs/demo"), seed: Seed = None) -> None:
    """Customise a small fleet on handwritten digits, with no download, in a few minutes."""
    from acme_fleet.config.fleet import Fleet

    _run(Fleet.from_yaml(EXAMPLE), out or Path("runs/demo"), seed, resume=False)


@app.command()
def init(path: FleetFile) -> None:
    """Write a commented example fleet file."""
    from acme_fleet.errors import FleetError

    if path.exists():
        raise FleetError(f"{path} exists already; it was not changed")
    try:
        path.write_text(EXAMPLE.read_text())
    except OSError as error:
        raise FleetError(f"cannot write {path}: {error.strerror}") from error
    say(f"wrote {path}; look at its plan with: acme check {path}")


@app.command()
def check(path: FleetFile) -> None:
    """Validate a fleet file and all data, print the plan and warnings; nothing is trained."""
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.inspection.plan import check_feasible, examine
    from acme_fleet.report.terminal.holdings import print_holdings
    from acme_fleet.report.terminal.reasons import print_limits
    from acme_fleet.report.terminal.run import print_leaving, print_plan

    fleet = Fleet.from_yaml(path)
    plan = examine(fleet)
    print_plan(fleet, plan)
    print_limits(fleet, plan)
    print_leaving(fleet, plan)
    print_holdings(fleet, plan)
    check_feasible(fleet, plan)


@app.command()
def run(
    path: FleetFile,
    out: Out = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option(help="Go on, if a run was interrupted there.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="All on this machine, or many hosts over Flower.")
    ] = "embedded",
    config: Annotated[
        Path | None, typer.Option(help="The cloud's site file, for --engine flower.")
    ] = None,
) -> None:
    """Customise a fleet: the main job."""
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.errors import FleetError

    if engine == "flower":
        need_flower()
    if (engine == "flower") != (config is not None):
        raise FleetError("--engine flower needs --config SITE.yaml, and only it takes one")
    fleet = Fleet.from_yaml(path)
    _run(fleet, out or Path("runs") / fleet.name, seed, resume=resume, config=config)


@app.command()
def report(run_dir: RunDir) -> None:
    """Rebuild the report of a finished run."""
    from acme_fleet.pipeline import rebuild_report

    page = rebuild_report(run_dir)
    say(f"report: {page}")


@app.command()
def predict(
    place: Annotated[
        Path,
        typer.Argument(help="A run, a device's folder, or an artifact.", show_default=False),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files, folders (with all below them); - is standard input (texts). For a "
            "language model prompts."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Name of the device; a run directory needs it.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given again.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="A file holds one text a line.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line, and nothing else.")
    ] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="The n most probable classes.", show_default=False)
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="New tokens of a language model, at most.")
    ] = 40,
    chat: Annotated[
        bool, typer.Option("--chat", help="A prompt is what a user says, by the chat template.")
    ] = False,
) -> None:
    """Use a device's shipped model: on files, or on the device's test data.

    \b
    acme predict runs/mine --device cam-1              its own test data
    acme predict runs/mine --device cam-1 a.png photos
    acme predict runs/mine/devices/cam-1 photos --json --top 3
    acme predict runs/mine/artifacts/cam-1 photos    without torch, in ONNX Runtime
    acme predict runs/mine/devices/speaker-2 --text "turn the light on"
    acme predict runs/mine/devices/speaker-2 --lines -   < texts
    acme predict runs/mine/devices/helper-1 "how do i"   what a language model writes behind it

    A file that cannot be read is told on its line; the others are answered, and the exit code is 1.
    """
    from acme_fleet.errors import FleetError
    from acme_fleet.report.terminal.predictions import print_answers
    from acme_fleet_runtime.answers import write_answers
    from acme_fleet_runtime.inputs import Skipped, find_inputs

    if not files and not text:
        if lines or as_json or top:
            raise FleetError("--lines, --json and --top need files or --text")
        _predict_test_data(place, device)
        return
    if _completed(place, device, [*map(str, files or []), *(text or [])], tokens, chat, as_json):
        return
    own, skipped = _model_in(place, device), Skipped()
    inputs = find_inputs(files or [], text or [], skipped, images=own.takes_images, lines=lines)
    show = write_answers if as_json else print_answers
    total, refused = show(own.classify(inputs), top)
    if skipped.count:
        say(skipped.told(images=own.takes_images), error=True)
    if not total:
        raise FleetError("there is nothing to classify")
    if refused:
        say(f"error: {refused} of {total} could not be read", error=True)
        raise typer.Exit(1)


def _completed(
    place: Path, device: str | None, prompts: list[str], tokens: int, chat: bool, as_json: bool
) -> bool:
    """Print what a language model writes behind prompts; false for any other model."""
    from acme_fleet.errors import FleetError
    from acme_fleet_runtime.manifest import is_artifact, read_manifest

    if device is None and is_artifact(place):
        if not read_manifest(place).writes:
            return False
        match read_manifest(place).program.name:
            case "onnxruntime":
                _continued(place, prompts, tokens, chat, as_json)
                return True
            case "llama.cpp":
                raise FleetError(f"{place} is for llama.cpp: python {place / 'run.py'} TEXT")
    from acme_fleet.inspection.complete import Writer

    writer = Writer.open(place, device)
    if writer is None:
        return False
    for answer in writer.complete(prompts, tokens, chat=chat):
        shown = answer.text if chat else f"{answer.prompt}{answer.text}"
        say(json.dumps(vars(answer)) if as_json else shown)
    return True


def _continued(place: Path, prompts: list[str], tokens: int, chat: bool, as_json: bool) -> None:
    """Print what an artifact writes behind prompts, without torch."""
    from acme_fleet_runtime.writer import Wish, Writer, open_artifact

    writer = open_artifact(place)
    assert isinstance(writer, Writer)  # by its manifest
    for prompt in prompts:
        says = [{"role": "user", "content": prompt}]
        begun = writer.asked(says) if chat else writer.prompt(prompt)
        text = writer.complete(begun, Wish(tokens))
        shown = text if chat else f"{prompt}{text}"
        say(json.dumps({"prompt": prompt, "text": text}) if as_json else shown)


def _model_in(place: Path, device: str | None) -> Classifier[Any]:
    """An artifact runs without torch, which is not imported then."""
    from acme_fleet_runtime.manifest import is_artifact, read_manifest
    from acme_fleet_runtime.runner import PROGRAM, Runner

    if device is None and is_artifact(place) and read_manifest(place).program.name == PROGRAM:
        return Runner.open(place)
    from acme_fleet.inspection.predict import open_model

    return open_model(place, device)


def _predict_test_data(place: Path, device: str | None) -> None:
    from acme_fleet.errors import FleetError
    from acme_fleet.inspection.predict import predict_test_data
    from acme_fleet.report.terminal.run import print_test_result

    if device is None:
        _model_in(place, device)  # a missing folder, or a missing --device, comes first
        raise FleetError(
            f"name files for the model of {place}; only a run directory knows test data"
        )
    print_test_result(device, *predict_test_data(place, device))


@app.command()
def explain(
    run_dir: RunDir,
    device: Annotated[
        str | None, typer.Option(help="Name of a device; without it, the whole fleet is compared.")
    ] = None,
) -> None:
    """Why a device got its backbone, and what other storage limits would have bought."""
    from acme_fleet.inspection.explain import compare_matching, explain_device
    from acme_fleet.report.terminal.reasons import print_explanation, print_matching

    if device is None:
        print_matching(compare_matching(run_dir))
    else:
        print_explanation(explain_device(run_dir, device))


@app.command()
def profile(
    model: Annotated[
        Path,
        typer.Argument(help="A device's folder in a run, or a checkpoint.", show_default=False),
    ],
    device_file: Annotated[
        Path | None, typer.Option(help="Write the profile here, for a fleet's device_types.")
    ] = None,
    meter: Annotated[
        Path | None, typer.Option(help="CSV (time,watts) that a meter is appending to.")
    ] = None,
    tdp: Annotated[
        float | None,
        typer.Option(min=0.1, help="The processor's TDP in watts, to estimate energy by load."),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run on the first NVIDIA GPU.")] = False,
    runtime: Annotated[
        str, typer.Option(help="pytorch, or onnxruntime, which has all precisions.")
    ] = "pytorch",
    largest_batch: Annotated[int, typer.Option(min=1, help="Batches are 1, 2, 4, … this.")] = 16,
    runs: Annotated[int, typer.Option(min=5, help="Forward passes at least, of each.")] = 20,
) -> None:
    """Measure what a model costs on this machine, and fit the constants of Eq. 2."""
    from acme_fleet.cost.power import find_source
    from acme_fleet.errors import FleetError
    from acme_fleet.profiling.file import power_label, write_profile
    from acme_fleet.profiling.fit import TORCH, check_fit, profile_model
    from acme_fleet.report.terminal.costs import print_profile
    from acme_fleet.report.terminal.run import LiveStages

    if device_file is not None and device_file.exists():
        raise FleetError(f"{device_file} exists already; it was not changed")
    from acme_fleet.config.base import chosen
    from acme_fleet.deploy.runtime_cost import ONNX_RUNTIME

    runtimes = {each.name: each for each in (TORCH, ONNX_RUNTIME)}
    taken = chosen(runtimes, runtime, "--runtime")
    source = find_source(on_gpu=gpu, meter=meter, tdp_w=tdp)
    with LiveStages() as stages:
        found = profile_model(
            model,
            source,
            on_gpu=gpu,
            runtime=taken,
            largest_batch=largest_batch,
            runs=runs,
            progress=lambda stage, done, total: stages.stage("profile", stage, done, total),
        )
    print_profile(found, power_label(source))
    if device_file is not None:
        check_fit(found)
        write_profile(found, device_file)
        say(f"wrote {device_file}; in a fleet file: device_types: {{NAME: {device_file}}}")


def _run(
    fleet: Fleet, out: Path, seed: int | None, *, resume: bool, config: Path | None = None
) -> None:
    from acme_fleet.pipeline import customize
    from acme_fleet.runs.directory import RunDirectory

    if seed is not None:
        fleet = fleet.model_copy(update={"seed": seed})
    if resume and not RunDirectory(out).begun():
        say(f"there is nothing in {out} to go on with; the run starts")

    def work(stages: Observer) -> Summary:
        if config is None:
            return customize(fleet, out, resume=resume, observer=stages)
        from acme_fleet.network.hosts.run import customize_over_flower

        return customize_over_flower(fleet, out, config, resume=resume, observer=stages)

    run_and_tell(out, work, many_hosts=config is not None)


def run_and_tell(out: Path, work: Callable[[Observer], Summary], *, many_hosts: bool) -> None:
    """Do the work of a run with a live display, and tell how it ended.

    Raises:
        Exit: with the code of an interruption, or 1 if clusters were lost.
    """
    from acme_fleet.report.terminal.run import LiveStages, print_summary
    from acme_fleet.runs.directory import REPORT, RunDirectory

    try:
        with LiveStages() as stages:
            summary = work(stages)
    except KeyboardInterrupt as stop:
        begun = RunDirectory(out).exists()
        say(f"interrupted; {_kept(out) if begun else 'nothing was written yet'}", error=True)
        raise typer.Exit(exit_code(stop)) from None
    print_summary(summary)
    if many_hosts:
        from acme_fleet.report.overhead import overhead_text
        from acme_fleet.runs.journal import read_events

        say(overhead_text(read_events(RunDirectory(out).events)))
    say(f"report: {(out / REPORT).resolve()}")
    if summary.lost:
        command = RunDirectory(out).resume_command
        say(
            f"clusters that did not finish: {', '.join(summary.lost)}; go on: {command}", error=True
        )
        raise typer.Exit(1)


def _kept(out: Path) -> str:
    from acme_fleet.runs.directory import RunDirectory

    return f"what is finished is in {out}; go on: {RunDirectory(out).resume_command}"
