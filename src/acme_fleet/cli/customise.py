"""From a fleet file to models: plan, run, look at, use."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from acme_fleet.cli.app import CUSTOMISE, DEPLOY, app, called, say
from acme_fleet.cli.hosts import need_flower
from acme_fleet.cli.init import EXAMPLE
from acme_fleet.cli.signals import exit_code

if TYPE_CHECKING:
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.runs.callbacks import Callback
    from acme_fleet.runs.journal import Observer
    from acme_fleet.runs.summary import Summary

Out = Annotated[Path | None, typer.Option(help="Run directory; must be new or empty.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Overrides the fleet's seed.")]
FleetFile = Annotated[Path, typer.Argument(help="A fleet file (YAML).", show_default=False)]
RunDir = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
Engine = Literal["embedded", "flower"]
_LAUNCHED = "TORCHELASTIC_RUN_ID"  # by torchrun


@app.command(rich_help_panel=CUSTOMISE)
def demo(out: Out = Path("runs/demo"), seed: Seed = None) -> None:
    """Customise a small fleet on handwritten digits, with no download, in a few minutes."""
    from acme_fleet.config.fleet import Fleet

    _run(Fleet.from_yaml(EXAMPLE), out or Path("runs/demo"), seed, resume=False)
    say(
        "the demo's devices have some two dozen digits each, few on purpose: so the run may warn "
        "of few validation samples"
    )


@app.command(rich_help_panel=CUSTOMISE)
def check(path: FleetFile) -> None:
    """Validate a fleet file and all data, print the plan and warnings; nothing is trained."""
    fleet = _read(path)
    from acme_fleet.inspection.duration import expected_duration
    from acme_fleet.inspection.footprint import expected_memory
    from acme_fleet.inspection.plan import check_feasible, examine_whole
    from acme_fleet.report.terminal.holdings import print_holdings
    from acme_fleet.report.terminal.reasons import print_limits
    from acme_fleet.report.terminal.run import (
        print_candidates,
        print_duration,
        print_leaving,
        print_links,
        print_memory,
    )

    seen = examine_whole(fleet)
    plan = seen.plan
    print_candidates(fleet, plan)
    check_feasible(fleet, plan)
    print_links(fleet, plan)
    print_limits(fleet, plan)
    print_leaving(fleet, plan)
    warnings = print_holdings(fleet, plan) + print_memory(fleet, expected_memory(fleet, seen))
    print_duration(expected_duration(fleet, seen))
    told = {0: "nothing to warn of", 1: "one warning, which lets it run"}
    run_it = f"{called()} run {shlex.quote(str(path))} --out runs/{fleet.name}"
    say(f"{told.get(warnings, f'{warnings} warnings, which let it run')}; next: {run_it}")


@app.command(rich_help_panel=CUSTOMISE)
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
    track: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="TRACKER PLACE",
            help="mlflow URI, tensorboard FOLDER or wandb PROJECT.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Customise a fleet: the main job.

    \b
    acme run fleet.yaml --out runs/mine --track mlflow http://127.0.0.1:5000
    acme run fleet.yaml --out runs/mine --track tensorboard logs
    acme run fleet.yaml --out runs/mine --track wandb my-project
    torchrun --nproc-per-node 4 --no-python acme run fleet.yaml   # four GPUs for the cloud's part
    """
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.errors import FleetError

    if engine == "flower":
        if _LAUNCHED in os.environ:
            raise FleetError("--engine flower: the cloud of many hosts trains in one process")
        need_flower()
    if (engine == "flower") != (config is not None):
        raise FleetError("--engine flower needs --config SITE.yaml, and only it takes one")
    # Of many hosts each has its own data.
    fleet = Fleet.from_yaml(path) if engine == "flower" else _read(path)
    if _LAUNCHED in os.environ and os.environ["RANK"] != "0":
        from acme_fleet.cloud.crew import help_to_train

        help_to_train(fleet)
        return
    _run(fleet, out or Path("runs") / fleet.name, seed, resume=resume, config=config, track=track)


@app.command(rich_help_panel=CUSTOMISE)
def report(
    run_dir: RunDir,
    with_examples: Annotated[
        bool,
        typer.Option(
            "--with-examples", help="Show some test samples of each device: for their owner alone."
        ),
    ] = False,
) -> None:
    """Rebuild the report of a finished run."""
    from acme_fleet.report.page.html import write_report
    from acme_fleet.runs.directory import RunDirectory
    from acme_fleet.runs.journal import read_events
    from acme_fleet.runs.summary import Summary

    run, examples = RunDirectory.open(run_dir), None
    if with_examples:
        from acme_fleet.inspection.examples import find_examples

        examples = find_examples(run_dir)
    write_report(Summary.read(run.finished()), read_events(run.events), run.report, examples)
    say(f"report: {run.report}")


@app.command(rich_help_panel=CUSTOMISE)
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


@app.command(rich_help_panel=DEPLOY)
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
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.runs.atomic import check_writable

    if device_file is not None and device_file.exists():
        raise FleetError(f"{device_file} exists already; it was not changed")
    if device_file is not None:
        check_writable(device_file)
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


def _read(path: Path) -> Fleet:
    """A fleet file; unknown keys, names and paths are told before any library is loaded."""
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.inspection.quick import check_names, check_places

    fleet = Fleet.from_yaml(path)
    check_names(fleet)
    check_places(fleet)
    return fleet


def _run(
    fleet: Fleet,
    out: Path,
    seed: int | None,
    *,
    resume: bool,
    config: Path | None = None,
    track: tuple[str, str] | None = None,
) -> None:
    from acme_fleet.runs.directory import RunDirectory

    if seed is not None:
        fleet = fleet.model_copy(update={"seed": seed})
    if resume:
        RunDirectory(out).require_same(fleet.with_paths_from(Path.cwd()))
    else:
        RunDirectory(out).require_startable()
    say(f"{fleet.name}: reading its data; the run goes to {out}")
    from acme_fleet.pipeline import customize
    from acme_fleet.runs.callbacks import run_watched
    from acme_fleet.tracking import tracker
    from acme_fleet.training.group import joined

    watchers: list[Callback] = [tracker(*track)] if track else []
    if resume and not RunDirectory(out).begun():
        say(f"there is nothing in {out} to go on with; the run starts")

    def work(observer: Observer | None) -> Summary:
        if config is None:
            with joined(fleet.accelerator) as group:
                return customize(fleet, out, resume=resume, observer=observer, group=group)
        from acme_fleet.network.hosts.run import customize_over_flower

        return customize_over_flower(fleet, out, config, resume=resume, observer=observer)

    def watched(stages: Observer) -> Summary:
        return run_watched(watchers, stages, fleet, out, work)

    run_and_tell(out, watched, many_hosts=config is not None)


def run_and_tell(out: Path, work: Callable[[Observer], Summary], *, many_hosts: bool) -> None:
    """Do the work of a run with a live display, and tell how it ended.

    Raises:
        Exit: with the code of an interruption, or 1 if clusters were lost.
    """
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.report.terminal.run import print_summary
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
    if summary.devices and not many_hosts:
        computed = list(summary.update.computed) if summary.update else []
        place, name = shlex.quote(str(out)), (computed or [summary.devices[0].name])[0]
        which = f"--device {name}" if len(computed) == 1 else "--all"
        say(f"next: {called()} explain {place} --device {name}   why it got this model")
        say(f"      {called()} export {place} {which}   artifacts for the devices' runtimes")
    if summary.lost:
        command = RunDirectory(out).resume_command
        say(
            f"clusters that did not finish: {', '.join(summary.lost)}; go on: {command}", error=True
        )
        raise typer.Exit(1)


def _kept(out: Path) -> str:
    from acme_fleet.runs.directory import RunDirectory

    return f"what is finished is in {out}; go on: {RunDirectory(out).resume_command}"
