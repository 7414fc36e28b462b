"""The command line. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acme_fleet.errors import AcmeError

if TYPE_CHECKING:
    from acme_fleet.fleet import Fleet
    from acme_fleet.report.summary import Summary

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path | None, typer.Option(help="Run directory; must be new or empty.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Overrides the fleet's seed.")]
FleetFile = Annotated[Path, typer.Argument(help="A fleet file (YAML).", show_default=False)]
RunDir = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]

EXAMPLE = Path(__file__).parent / "demo.yaml"


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        _say(f"acme-fleet {version('acme-fleet')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One large Transformer in, one small model for every device of a fleet out."""


@app.command()
def demo(out: Out = Path("runs/demo"), seed: Seed = None) -> None:
    """Customise a small fleet on handwritten digits, with no download, in a few minutes."""
    with _errors_explained():
        from acme_fleet.fleet import Fleet

        _run(Fleet.from_yaml(EXAMPLE), out or Path("runs/demo"), seed, resume=False)


@app.command()
def init(path: FleetFile) -> None:
    """Write a commented example fleet file."""
    with _errors_explained():
        from acme_fleet.errors import FleetError

        if path.exists():
            raise FleetError(f"{path} exists already; it was not changed")
        try:
            path.write_text(EXAMPLE.read_text())
        except OSError as error:
            raise FleetError(f"cannot write {path}: {error.strerror}") from error
    _say(f"wrote {path}; look at its plan with: acme check {path}")


@app.command()
def check(path: FleetFile) -> None:
    """Validate a fleet file and print the plan; nothing is trained."""
    with _errors_explained():
        from acme_fleet.fleet import Fleet
        from acme_fleet.pipeline import check_feasible, examine
        from acme_fleet.report.reasons import print_limits
        from acme_fleet.report.terminal import print_plan

        fleet = Fleet.from_yaml(path)
        plan = examine(fleet)
        print_plan(fleet, plan)
        print_limits(fleet, plan)
        check_feasible(fleet, plan)


@app.command()
def run(
    path: FleetFile,
    out: Out = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted.")] = False,
) -> None:
    """Customise a fleet: the main job."""
    with _errors_explained():
        from acme_fleet.fleet import Fleet

        fleet = Fleet.from_yaml(path)
        _run(fleet, out or Path("runs") / fleet.name, seed, resume=resume)


@app.command()
def report(run_dir: RunDir) -> None:
    """Rebuild the report of a finished run."""
    with _errors_explained():
        from acme_fleet.pipeline import rebuild_report

        page = rebuild_report(run_dir)
    _say(f"report: {page}")


@app.command()
def predict(
    run_dir: RunDir,
    device: Annotated[str, typer.Option(help="Name of the device.", show_default=False)],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or text files of one text each.")
    ] = None,
) -> None:
    """Use a device's shipped model: on its test data, or on files."""
    with _errors_explained():
        from acme_fleet.predict import predict_files, predict_test_data
        from acme_fleet.report.terminal import print_predictions, print_test_result

        if files:
            print_predictions(predict_files(run_dir, device, files))
        else:
            print_test_result(device, *predict_test_data(run_dir, device))


@app.command()
def explain(
    run_dir: RunDir,
    device: Annotated[
        str | None, typer.Option(help="Name of a device; without it, the whole fleet is compared.")
    ] = None,
) -> None:
    """Why a device got its backbone, and what other storage limits would have bought."""
    with _errors_explained():
        from acme_fleet.explain import compare_matching, explain_device
        from acme_fleet.report.reasons import print_explanation, print_matching

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
    largest_batch: Annotated[int, typer.Option(min=1, help="Batches are 1, 2, 4, … this.")] = 16,
    runs: Annotated[int, typer.Option(min=5, help="Forward passes at least, of each.")] = 20,
) -> None:
    """Measure what a model costs on this machine, and fit the constants of Eq. 2."""
    with _errors_explained():
        from acme_fleet.cost.power import find_source
        from acme_fleet.device.profile import check_fit, profile_model
        from acme_fleet.device.profile_file import power_label, write_profile
        from acme_fleet.errors import FleetError
        from acme_fleet.report.costs import print_profile
        from acme_fleet.report.terminal import LiveStages

        if device_file is not None and device_file.exists():
            raise FleetError(f"{device_file} exists already; it was not changed")
        source = find_source(on_gpu=gpu, meter=meter, tdp_w=tdp)
        with LiveStages() as stages:
            found = profile_model(
                model,
                source,
                on_gpu=gpu,
                largest_batch=largest_batch,
                runs=runs,
                progress=lambda stage, done, total: stages.stage("profile", stage, done, total),
            )
        print_profile(found, power_label(source))
        if device_file is not None:
            check_fit(found)
            write_profile(found, device_file)
            _say(f"wrote {device_file}; in a fleet file: device_types: {{NAME: {device_file}}}")


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(help="Images: a folder, .parquet or .npz file.")],
    out: Annotated[Path, typer.Option(help="Folder of the model; must be new or empty.")],
    model: Annotated[str, typer.Option(help="vit-micro, -tiny, -small or -base.")] = "vit-tiny",
    patch_size: Annotated[int | None, typer.Option(min=1, help="Pixels along a side.")] = None,
    image_size: Annotated[int | None, typer.Option(min=4, help="Resize images to this.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Only the first n classes.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(min=1e-9)] = 1e-3,
    cutmix: Annotated[float | None, typer.Option(min=0, max=1, help="Mixed batches.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda: bfloat16 and compiled.")] = "cpu",
) -> None:
    """Train a reference model from data alone; it goes on where it was interrupted."""
    with _errors_explained():
        from acme_fleet.cloud.pretraining import pretrain, recipe_for
        from acme_fleet.data.archives import data_at
        from acme_fleet.data.datasets import load_source
        from acme_fleet.fleet import Training
        from acme_fleet.report.terminal import LiveStages

        source = load_source(data_at(data, image_size, classes))
        training = Training(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
        recipe = recipe_for(source, model, training, patch_size, cutmix, seed)
        with LiveStages() as stages:
            found = pretrain(
                source,
                recipe,
                out,
                torch_device=device,
                progress=lambda done, of, note: stages.stage("cloud", "pretrain", done, of, note),
            )
    _say(f"test accuracy {found['test']['accuracy']:.4f} on {found['test']['samples']} images")
    _say(f"wrote {out}; in a fleet file: reference: {{checkpoint: {out.resolve()}}}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def reproduce(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="fig7a, say; without it, all are listed.")
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke, small or full.")] = "smoke",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Run a table or figure of the paper again (a clone of the project has the stories).

    Further options are the story's own: --data, --out, --results, --device, --threads.
    """
    with _errors_explained():
        from acme_fleet.report.stories import read_stories, run_story

        if name is None:
            for story, summary in read_stories().items():
                _say(f"{story:<8} {summary}")
            return
        options = ["--scale", scale, "--seeds", str(seeds), *context.args]
        raise typer.Exit(run_story(name, options))


def _run(fleet: Fleet, out: Path, seed: int | None, *, resume: bool) -> None:
    from acme_fleet.pipeline import customize
    from acme_fleet.report.terminal import LiveStages, print_summary
    from acme_fleet.run_directory import REPORT, RunDirectory

    if seed is not None:
        fleet = fleet.model_copy(update={"seed": seed})
    try:
        with LiveStages() as stages:
            summary: Summary = customize(fleet, out, resume=resume, observer=stages)
    except KeyboardInterrupt:
        command = RunDirectory(out).resume_command
        _say(f"interrupted; what is finished is in {out}; go on: {command}", error=True)
        raise typer.Exit(130) from None
    print_summary(summary)
    _say(f"report: {(out / REPORT).resolve()}")
    if summary.lost:
        command = RunDirectory(out).resume_command
        _say(
            f"clusters that did not finish: {', '.join(summary.lost)}; go on: {command}", error=True
        )
        raise typer.Exit(1)


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Bad input is one clear message and exit code 2, not a traceback."""
    try:
        yield
    except AcmeError as error:
        _say(f"error: {error}", error=True)
        raise typer.Exit(2) from None


def _say(text: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
