"""Answers of a device's model: on files, texts, or its own test data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acme_fleet.cli.app import DEPLOY, app, say

if TYPE_CHECKING:
    from acme_fleet.inspection.complete import Writer
    from acme_fleet_runtime.answers import Classifier
    from acme_fleet_runtime.writer import Writer as Runtime

_SHOWN = 5  # test texts of a language model


@app.command(rich_help_panel=DEPLOY)
def predict(
    place: Annotated[
        Path,
        typer.Argument(help="A run, a device's folder, or an artifact.", show_default=False),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files, folders (with all below them), or several words as a text; - is standard "
            "input (texts). For a language model prompts, or with --lines files of prompts."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Name of the device; a run directory needs it.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given again.")] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="A file holds one text, or prompt, a line.")
    ] = False,
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
    acme predict runs/mine/devices/speaker-2 "turn the light on"
    acme predict runs/mine/devices/speaker-2 --lines -   < texts
    acme predict runs/mine/devices/helper-1 "how do i"   what a language model writes behind it
    acme predict runs/mine/devices/helper-1 --lines prompts.txt

    A file that cannot be read is told on its line; the others are answered, and the exit code is 1.
    """
    from acme_fleet.errors import FleetError
    from acme_fleet.report.terminal.predictions import print_answers
    from acme_fleet_runtime.answers import write_answers
    from acme_fleet_runtime.inputs import Skipped, find_inputs
    from acme_fleet_runtime.prompts import HINT, read_prompts, shown

    if not files and not text:
        if lines or as_json or top:
            raise FleetError("--lines, --json and --top need files or --text")
        _predict_test_data(place, device)
        return
    writer = _writer_in(place, device)
    if writer is not None:
        if top:
            raise FleetError("--top counts classes; a language model has none")
        for prompt in read_prompts(files or [], text or [], lines=lines):
            written = writer.answer(prompt, tokens, chat)
            answer = {"prompt": prompt, "text": written}
            say(json.dumps(answer) if as_json else shown(prompt, written))
        if writer.chats and not (chat or as_json):
            say(HINT, error=True)
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


def _writer_in(place: Path, device: str | None) -> Writer | Runtime | None:
    """Writes behind prompts, in PyTorch or in an artifact's runtime; none of a classifier."""
    from acme_fleet.errors import FleetError
    from acme_fleet_runtime.manifest import is_artifact, read_manifest

    if device is None and is_artifact(place):
        manifest = read_manifest(place)
        if not manifest.writes:
            return None
        match manifest.program.name:
            case "onnxruntime":
                from acme_fleet_runtime.writer import Writer as Runtime
                from acme_fleet_runtime.writer import open_artifact

                artifact = open_artifact(place)
                assert isinstance(artifact, Runtime)  # by its manifest
                return artifact
            case "llama.cpp":
                raise FleetError(f"{place} is for llama.cpp: python {place / 'run.py'} TEXT")
    from acme_fleet.inspection.complete import Writer

    return Writer.open(place, device)


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
    from acme_fleet.inspection.complete import tested_texts
    from acme_fleet.inspection.predict import predict_test_data
    from acme_fleet.report.terminal.run import print_test_result
    from acme_fleet_runtime.prompts import shown

    if device is None:
        _model_in(place, device)  # a missing folder, or a missing --device, comes first
        raise FleetError(
            f"name files for the model of {place}; only a run directory knows test data"
        )
    tested = predict_test_data(place, device)
    print_test_result(device, tested.task, tested.evaluation, len(tested.samples))
    if tested.task.per_token:
        for one in tested_texts(tested.model.folder, tested.samples, _SHOWN):
            say(f"{shown(one.prompt, one.text)}\n    in the data: {one.expected}")
