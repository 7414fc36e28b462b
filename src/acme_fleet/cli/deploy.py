"""From a run to a device: artifacts, and a server for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acme_fleet.cli.app import DEPLOY, Host, Port, Token, app, say
from acme_fleet.cli.fleet import RegistryOption, open_registry

if TYPE_CHECKING:
    from acme_fleet.deploy.export import Exported
    from acme_fleet.deploy.registry.store import Registry
    from acme_fleet_runtime.manifest import Manifest


@app.command(rich_help_panel=DEPLOY)
def export(
    place: Annotated[
        Path,
        typer.Argument(help="A run directory, or a device's folder alone.", show_default=False),
    ],
    device: Annotated[str | None, typer.Option(help="Name of the device of a run.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All devices of the run.")] = False,
    format_name: Annotated[
        str, typer.Option("--format", help="onnx, executorch, gguf or safetensors.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the artifacts; in the run's artifacts without it."),
    ] = None,
    samples: Annotated[
        list[Path] | None,
        typer.Option(help="Files or folders to verify on, in place of the device's own data."),
    ] = None,
    registry: RegistryOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write what the verification refuses.")
    ] = False,
    without_header: Annotated[
        bool,
        typer.Option(help="Of a language model, write the backbone alone.", show_default=False),
    ] = False,
) -> None:
    """Write a device's model as an artifact for its runtime, once it is verified against PyTorch.

    \b
    acme export runs/mine --device cam-1             runs/mine/artifacts/cam-1
    acme export runs/mine --all --out artifacts      artifacts/cam-1, artifacts/cam-2, …
    acme export runs/mine/devices/cam-1 --out cam-1  verified on random inputs
    """
    from acme_fleet.deploy.export import devices_of, export, origin_alone, origin_in_run
    from acme_fleet.errors import AcmeError, FleetError
    from acme_fleet.runs.directory import ARTIFACTS, FLEET, RunDirectory

    named, record = samples or [], open_registry(registry)
    if not every and device is None and not (place / FLEET).exists():
        if out is None:
            raise FleetError("name a folder with --out: a device's folder alone has no place")
        origin = origin_alone(place, named)
        done = export(origin, format_name, out, force=force, without_header=without_header)
        tell_exported(done)
        _record(record, [done], None)
        return
    run, failed, written = RunDirectory.open(place), 0, []
    names = devices_of(run, device, every=every)
    planned = {own.name for own in run.fleet.devices if not own.runs_artifacts}
    parent = out or place / ARTIFACTS
    for name in names:
        target = parent if out is not None and not every else parent / name
        try:
            origin = origin_in_run(run, name, named)
            done = export(origin, format_name, target, force=force, without_header=without_header)
            tell_exported(done)
            if name in planned:
                say(
                    f"{name}: no runtime is for this device; the artifact runs on others",
                    error=True,
                )
            written.append(done)
        except AcmeError as error:
            if not every:
                raise
            failed += 1
            say(f"error: {error}", error=True)
    _record(record, written, place)
    if failed:
        say(f"error: {failed} of {len(names)} were not written", error=True)
        raise typer.Exit(1)


@app.command(rich_help_panel=DEPLOY)
def serve(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.", show_default=False)],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    token: Token = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
) -> None:
    """Answer HTTP requests with an artifact, without torch: /predict, /health and /metrics.

    A language model's answers in OpenAI's form, in place of /predict: /v1/completions,
    /v1/chat/completions and /v1/models.

    \b
    acme serve runs/mine/artifacts/cam-1
    curl -H 'Content-Type: image/png' --data-binary @photo.png http://127.0.0.1:8080/predict
    """
    from acme_fleet_runtime.server import serve
    from acme_fleet_runtime.writer import open_artifact

    serve(open_artifact(artifact, threads), host, port, token, say)


def _record(registry: Registry | None, written: list[Exported], run: Path | None) -> None:
    if registry is not None:
        for one in written:
            registry.record(one.folder, run=run)


def tell_exported(done: Exported) -> None:
    """Print what was written, how it was verified, and what speaks against it."""
    from acme_fleet.report.words import bytes_text

    manifest = done.manifest
    name, model = next((n, e) for n, e in manifest.files.items() if n.startswith("model."))
    limit = manifest.limit
    told = [
        f"{bytes_text(manifest.size_bytes)} in {manifest.precision}, all files ({name} "
        f"{bytes_text(model.size_bytes)}, the run's model {bytes_text(done.shipped_bytes)})",
        f"logits within {100 * manifest.verification.largest_difference:.1g} % of their spread of "
        f"PyTorch's on {manifest.verification.samples} {manifest.verification.data} inputs",
        *_measured(manifest),
    ]
    say(f"{manifest.name}: {'; '.join(told)}")
    for note in manifest.notes:
        say(f"{manifest.name}: {note}")
    for refusal in done.refusals:
        say(f"warning: {manifest.name}: forced: {refusal}", error=True)
    if limit is not None and not limit.fits:
        say(
            f"warning: {manifest.name}: the model's file has {limit.model_bytes:,} bytes, the "
            f"device stores {limit.storage_bytes:,}",
            error=True,
        )
    say(f"wrote {done.folder}")


def _measured(manifest: Manifest) -> list[str]:
    """Accuracies or losses, and times, in words."""
    from acme_fleet_runtime.manifest import Accuracy, Latency

    shares = [
        f"{one.data} {one.artifact:.3f} (PyTorch {one.pytorch:.3f})"
        if isinstance(one, Accuracy)
        else f"{one.data} {one.artifact_loss:.4f} (the device's model {one.pytorch_loss:.4f})"
        for one in manifest.accuracy
    ]
    what = "loss per token" if manifest.writes else "accuracy"
    parts, took = [f"{what} on {', '.join(shares)}"] if shares else [], manifest.latency
    if isinstance(took, Latency):
        parts.append(f"{took.median_ms:.3g} ms (PyTorch {took.pytorch_ms:.3g})")
    elif took is not None:
        speeds = [
            f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
            for speed in (took.tokens_per_s, took.pytorch_tokens_per_s)
        ]
        parts.append(
            f"{speeds[0]} tokens a second (PyTorch {speeds[1]}), "
            f"the first after {took.first_token_ms:.3g} ms ({took.pytorch_first_token_ms:.3g})"
        )
    return parts
