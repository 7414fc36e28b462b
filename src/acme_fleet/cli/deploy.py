"""From a run to a device: artifacts, and a server for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acme_fleet.cli.app import DEPLOY, app, say
from acme_fleet.cli.fleet import RegistryOption, open_registry

if TYPE_CHECKING:
    from acme_fleet.deploy.export import Exported
    from acme_fleet.deploy.registry.store import Registry

ARTIFACTS = "artifacts"


@app.command(rich_help_panel=DEPLOY)
def export(
    place: Annotated[
        Path,
        typer.Argument(help="A run directory, or a device's folder alone.", show_default=False),
    ],
    device: Annotated[str | None, typer.Option(help="Name of the device of a run.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All devices of the run.")] = False,
    format_name: Annotated[
        str, typer.Option("--format", help="onnx, executorch or safetensors.")
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
) -> None:
    """Write a device's model as an artifact for its runtime, once it is verified against PyTorch.

    \b
    acme export runs/mine --device cam-1             runs/mine/artifacts/cam-1
    acme export runs/mine --all --out artifacts      artifacts/cam-1, artifacts/cam-2, …
    acme export runs/mine/devices/cam-1 --out cam-1  verified on random inputs
    """
    from acme_fleet.deploy.export import devices_of, export, origin_alone, origin_in_run
    from acme_fleet.errors import AcmeError, FleetError
    from acme_fleet.runs.directory import FLEET, RunDirectory

    named, record = samples or [], open_registry(registry)
    if not every and device is None and not (place / FLEET).exists():
        if out is None:
            raise FleetError("name a folder with --out: a device's folder alone has no place")
        done = export(origin_alone(place, named), format_name, out, force=force)
        _tell(done)
        _record(record, [done], None)
        return
    run, failed, written = RunDirectory.open(place), 0, []
    names = devices_of(run, device, every=every)
    parent = out or place / ARTIFACTS
    for name in names:
        target = parent if out is not None and not every else parent / name
        try:
            done = export(origin_in_run(run, name, named), format_name, target, force=force)
            _tell(done)
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
    host: Annotated[
        str, typer.Option(help="Others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = 8080,
    token: Annotated[
        str | None,
        typer.Option(envvar="ACME_TOKEN", help="Requests must send it.", show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
) -> None:
    """Answer HTTP requests with an artifact, without torch: /predict, /health and /metrics.

    \b
    acme serve runs/mine/artifacts/cam-1
    curl -H 'Content-Type: image/png' --data-binary @photo.png http://127.0.0.1:8080/predict
    """
    from acme_fleet_runtime.runner import Runner
    from acme_fleet_runtime.server import serve

    serve(Runner.open(artifact, threads), host, port, token, say)


def _record(registry: Registry | None, written: list[Exported], run: Path | None) -> None:
    if registry is not None:
        for one in written:
            registry.record(one.folder, run=run)


def _tell(done: Exported) -> None:
    from acme_fleet.report.words import bytes_text

    manifest = done.manifest
    model = next(e.size_bytes for n, e in manifest.files.items() if n.startswith("model."))
    shares = [
        f"{one.data} {one.artifact:.3f} (PyTorch {one.pytorch:.3f})" for one in manifest.accuracy
    ]
    limit = manifest.limit
    told = [
        f"{bytes_text(manifest.size_bytes)} in {manifest.precision} (all files; the model's file "
        f"{bytes_text(model)}, that of the run {bytes_text(done.shipped_bytes)})",
        f"logits within {manifest.verification.largest_difference:.1g} of PyTorch's on "
        f"{manifest.verification.samples} {manifest.verification.data} inputs",
        *([f"accuracy on {', '.join(shares)}"] if shares else []),
        f"{manifest.latency.median_ms:.3g} ms (PyTorch {manifest.latency.pytorch_ms:.3g})",
    ]
    say(f"{manifest.name}: {'; '.join(told)}")
    for refusal in done.refusals:
        say(f"warning: {manifest.name}: forced: {refusal}", error=True)
    if limit is not None and not limit.fits:
        say(
            f"warning: {manifest.name}: the model's file has {limit.model_bytes:,} bytes, the "
            f"device stores {limit.storage_bytes:,}",
            error=True,
        )
    say(f"wrote {done.folder}")
