"""From a device's model to an artifact's folder: written, verified, described, put in place."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from acme_fleet.config.base import chosen
from acme_fleet.config.fleet import Fleet
from acme_fleet.deploy.base import Format, Written, eager, preparation
from acme_fleet.deploy.card import card
from acme_fleet.deploy.formats import FORMATS
from acme_fleet.deploy.samples import Evidence, at_random, of_files, of_run
from acme_fleet.deploy.verify import Verified, latency, verify
from acme_fleet.deploy.verify_language import speed, verify_language
from acme_fleet.errors import ArtifactError, FleetError, RunError
from acme_fleet.inspection.predict import DeviceModel, open_model
from acme_fleet.models.families import most_tokens
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.module import NoHeader
from acme_fleet.models.shipped import read_description
from acme_fleet.models.storage import WEIGHTS
from acme_fleet.outside import listed, read_regular, reading, resolved
from acme_fleet.runs.atomic import make_folder, writing
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.seeding import threads as using
from acme_fleet_runtime.manifest import (
    FORMAT,
    LARGEST_MANIFEST,
    MANIFEST,
    VERSION,
    Latency,
    Limit,
    Manifest,
    Reference,
    Speed,
    describe_file,
    is_artifact,
    read_manifest,
)

_THREADS = 1  # of what is measured
_LIBRARIES = (
    *("acme-fleet", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "gguf"),
    "llama-cpp-python",
)
_ALONE = "not the personal model: the device's header was left out, this is the backbone alone"
NOTE, CARD = "LICENSE-NOTE.txt", "README.md"
_LARGEST_CARD = 2**20  # bytes of a checkpoint's README


@dataclass(frozen=True)
class Origin:
    """A device's model and what is known of it.

    Attributes:
        model: of the device.
        name: of the device.
        evidence: to verify on.
        task: what was learned.
        trained: names of the classes that the device has seen.
        limit: the device's storage in bytes; none where it is not known.
        reference: what it was made from; none where that is not known.
        student: it is of a distillation, not of a device.
    """

    model: DeviceModel
    name: str
    evidence: Evidence
    task: str
    trained: tuple[str, ...] = ()
    limit: int | None = None
    reference: Reference | None = None
    student: bool = False

    @property
    def writes(self) -> bool:
        """True for a language model."""
        return self.task == "generation"


@dataclass(frozen=True)
class Exported:
    """An artifact that was put in place.

    Attributes:
        folder: of the artifact.
        manifest: its content.
        shipped_bytes: of the device's model file, in PyTorch's format.
        refusals: what the verification did not accept; empty unless it was forced.
    """

    folder: Path
    manifest: Manifest
    shipped_bytes: int
    refusals: tuple[str, ...]


def devices_of(run: RunDirectory, device: str | None, *, every: bool) -> list[str]:
    """The devices to export: the one that is named, or all that have a model.

    Raises:
        RunError: if none is named, or none has a model yet.
    """
    names = [each.name for each in run.fleet.devices]
    if device is not None:
        return [device]
    if not every:
        raise RunError(f"name a device with --device, or ask for --all: {listed(names, 10)}")
    ready = [name for name in names if (run.device(name) / WEIGHTS).exists()]
    if not ready:
        run.finished()  # raises, if they may still get their models
    return ready


def origin_in_run(run: RunDirectory, device: str, samples: Sequence[Path]) -> Origin:
    """A device of a run, with the device's own data to verify on unless ``samples`` are named.

    Raises:
        RunError: if it has no model.
        FleetError: if its data cannot be read.
    """
    fleet = run.fleet
    model = open_model(run.path, device)
    evidence = of_files(model, samples) if samples else of_run(model, fleet, device)
    limit = next(each.storage for each in fleet.devices if each.name == device)
    trained = tuple(read_description(model.folder).trained_classes)
    return Origin(model, device, evidence, fleet.task, trained, limit, _reference(fleet))


def origin_alone(folder: Path, samples: Sequence[Path]) -> Origin:
    """A device's folder without its run: verified on ``samples``, or on random inputs.

    Raises:
        RunError: if it has no model.
    """
    model = open_model(folder, None)
    description = read_description(folder)
    task = "generation" if description.writes else "classification"
    evidence = of_files(model, samples) if samples else at_random(model)
    trained = tuple(description.trained_classes)
    return Origin(model, resolved(folder).name, evidence, task, trained)


def export(
    origin: Origin, format_name: str, out: Path, *, force: bool, without_header: bool = False
) -> Exported:
    """Write an artifact of a device's model.

    The folder appears when everything is verified; until then, and after a refusal, an older
    artifact there stays as it was. One of another format, or with a header where this has none,
    is not replaced.

    Args:
        origin: the model.
        format_name: an entry of :data:`FORMATS`.
        out: folder of the artifact; new, empty or an artifact's, which is replaced.
        force: put it in place although the verification refuses it.
        without_header: write a language model's backbone alone, and measure what that loses.

    Raises:
        ArtifactError: with the numbers, if the artifact does not compute what PyTorch does.
        FleetError: if the model cannot be written in this format.
        RunError: if the folder holds something else, another kind of artifact too, or cannot be
            written.
    """
    form = chosen(FORMATS, format_name, "--format")
    writes = origin.writes
    if (form.begin if writes else form.start) is None:
        able = [n for n, each in FORMATS.items() if (each.begin if writes else each.start)]
        kind = "language models" if writes else "classifiers"
        raise FleetError(f"--format {form.name} takes no {kind}; {', '.join(able)} do")
    if without_header and not writes:
        raise FleetError("--without-header: a classifier's header gives its answers")
    _check_free(out)
    model = origin.model
    if without_header:
        model = replace(model, model=CustomizedModel(model.model.backbone, NoHeader()).eval())
    with _replacing_folder(out) as folder, using(_THREADS):
        written = form.write(model, folder)
        if without_header:
            written = replace(written, notes=(_ALONE, *written.notes))
        _check_same_kind(out, written)
        examine = _examined_language if writes else _examined
        verified, measured = examine(form, origin, model, folder, force)
        (folder / "run.py").write_text(written.script, encoding="utf-8")
        if origin.reference is not None:
            _note_license(origin.reference, folder)
        about = _described(origin, written, verified, measured, folder)
        (folder / CARD).write_text(
            card(about, form.needs, student=origin.student), encoding="utf-8"
        )
        manifest = _described(origin, written, verified, measured, folder)
        (folder / MANIFEST).write_text(manifest.written(), encoding="utf-8")
        read_manifest(folder)  # what cannot be read again is not put in place
    shipped = (origin.model.folder / WEIGHTS).stat().st_size
    return Exported(out, manifest, shipped, verified.refusals)


def _examined(
    form: Format, origin: Origin, model: DeviceModel, folder: Path, force: bool
) -> tuple[Verified, Latency]:
    """Verify a classifier's artifact, and measure it.

    Raises:
        ArtifactError: if it is refused, and not forced.
    """
    assert form.start is not None  # by ``export``
    artifact, shipped = form.start(folder, _THREADS), eager(model)
    same = None if form.pytorch is eager else form.pytorch(model)
    verified = verify(
        artifact,
        same or shipped,
        origin.evidence,
        model.model.backbone.config.precision,
        forced=force,
        shipped=same and shipped,
    )
    _check_accepted(verified, form, origin, force)
    return verified, latency(artifact, shipped, origin.evidence.first, _THREADS)


def _examined_language(
    form: Format, origin: Origin, model: DeviceModel, folder: Path, force: bool
) -> tuple[Verified, Speed | None]:
    """The same of a language model; ``model`` may be the device's without its header."""
    assert form.begin is not None  # by ``export``
    artifact, config = form.begin(folder, _THREADS), model.model.backbone.config
    verified = verify_language(
        artifact,
        form.pytorch(model),
        eager(origin.model),
        origin.evidence,
        config.precision,
        forced=force,
        alone=model is not origin.model,
    )
    _check_accepted(verified, form, origin, force)
    if artifact.go_on is None:
        return verified, None
    first, room = origin.evidence.first, most_tokens(config)
    return verified, speed(artifact.go_on, origin.model.model, first, _THREADS, room)


def _check_accepted(verified: Verified, form: Format, origin: Origin, force: bool) -> None:
    if verified.refusals and not force:
        raise ArtifactError(
            f"the {form.name} artifact of {origin.name} was not written: "
            f"{'; '.join(verified.refusals)}; --force writes it in spite of that"
        )


def _described(
    origin: Origin,
    written: Written,
    verified: Verified,
    measured: Latency | Speed | None,
    folder: Path,
) -> Manifest:
    """The manifest, with the files that there are now."""
    entries = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    size = entries[written.model].size_bytes
    limit = None if origin.limit is None else Limit(origin.limit, size, size <= origin.limit)
    return Manifest(
        format=FORMAT,
        version=VERSION,
        name=origin.name,
        task=origin.task,
        precision=origin.model.model.backbone.config.precision,
        program=written.program,
        files=entries,
        inputs=written.inputs,
        outputs=written.outputs,
        preparation=preparation(origin.model),
        labels=tuple(origin.model.class_names),
        trained_labels=origin.trained,
        reference=origin.reference,
        verification=verified.verification,
        accuracy=verified.accuracy,
        latency=measured,
        limit=limit,
        versions=dict(_versions()),
        notes=written.notes,
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _reference(fleet: Fleet) -> Reference | None:
    checkpoint = fleet.reference.checkpoint
    if checkpoint is None:
        return None
    folder = Path(checkpoint)
    name = folder.name if folder.is_dir() else str(checkpoint)
    return Reference(name[:200], _license(folder / "README.md"))


def _license(readme: Path) -> str | None:
    """The licence that the header of a model card names; none where there is no such card."""
    try:
        with reading(readme):
            header = read_regular(readme, _LARGEST_CARD).decode().partition("\n---")[0]
    except FleetError:
        return None
    if not header.startswith("---"):
        return None
    named = re.search(r"^license:\s*[\"']?([\w.-]{1,60})[\"']?\s*$", header, re.MULTILINE)
    return named[1] if named else None


def _note_license(reference: Reference, folder: Path) -> None:
    known = reference.license or "not known here: look at where it was published"
    (folder / NOTE).write_text(
        f"This model was made from {reference.name}, whose licence is {known}.\n"
        f"A licence of that model may hold for this one.\n",
        encoding="utf-8",
    )


def _check_free(out: Path) -> None:
    """Refuse a folder that holds something else than an artifact: it would be removed with it."""
    with reading(out, RunError):
        if not out.exists():
            return
        present = {path.name for path in out.iterdir()} if out.is_dir() else {""}
    if present and not is_artifact(out):
        raise RunError(f"{out} is no artifact's folder and is not empty; choose another --out")
    if others := sorted(present - _listed_files(out)):
        raise RunError(
            f"{out} holds {listed(others)}, which its {MANIFEST} does not list; choose another "
            f"--out, or remove what is there"
        )


def _listed_files(folder: Path) -> set[str]:
    """Names of an artifact's files by its manifest, which may be of an older version."""
    if not is_artifact(folder):
        return set()
    with reading(folder / MANIFEST, RunError):
        document = json.loads(read_regular(folder / MANIFEST, LARGEST_MANIFEST))
    files = document.get("files") if isinstance(document, dict) else None
    return {MANIFEST, *files} if isinstance(files, dict) else set()


def _check_same_kind(out: Path, written: Written) -> None:
    """Refuse to replace an artifact of another format, or of another model."""
    if not is_artifact(out):
        return
    try:
        old = read_manifest(out)
    except ArtifactError:  # damaged, or of an older version
        return
    kinds = [
        f"{program.name}{', without the header' if _ALONE in notes else ''}"
        for program, notes in ((old.program, old.notes), (written.program, written.notes))
    ]
    if kinds[0] != kinds[1]:
        raise RunError(
            f"{out} holds an artifact for {kinds[0]}; this one is for {kinds[1]}: choose another "
            f"--out, or remove that folder"
        )


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``out`` at the end; after an error it is gone.

    Raises:
        WriteError: if the system does not let it be written.
    """
    unique = secrets.token_hex(4)
    out = resolved(out)  # . and .. have a name then
    new, old = (out.with_name(f".{out.name}.{unique}.{kind}") for kind in ("partial", "old"))
    with writing(out):
        make_folder(out.parent)
        new.mkdir()
        try:
            yield new
            if out.exists():
                out.rename(old)
            new.rename(out)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
