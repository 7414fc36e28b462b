"""From what somebody has to a fleet file whose plan works out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import list_source
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.partition import World, check_shares
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.data.shares import Labels, share_out
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import check_feasible, make_plan
from acme_fleet.outside import resolved
from acme_fleet.starting.devices import DEFAULT_TYPE, Wanted, wanted_devices
from acme_fleet.starting.look import (
    Found,
    Progress,
    Template,
    look_at_dataset,
    look_at_images,
    look_at_texts,
)
from acme_fleet.starting.shape import is_known, shape_of_images, shape_of_texts
from acme_fleet.starting.written import Reference, own_vit, written

CHECKPOINTS: dict[Template, str] = {
    "text": "sentence-transformers/all-MiniLM-L6-v2",
    "assistant": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Checkpoints for texts where none is named."""
_DEVICES = 4
_MOST_DEVICES = 12  # where the data say how many owners there are


@dataclass(frozen=True)
class Have:
    """Data, checkpoint and devices by the options of `acme init`; one kind of data at most."""

    images: Path | None = None
    text: Path | None = None
    dataset: str | None = None
    checkpoint: str | Path | None = None
    devices: str | None = None
    template: Template | None = None


@dataclass(frozen=True)
class New:
    """A fleet file to be written.

    Attributes:
        content: its text.
        found: the data; of a template alone what stands for them.
        fleet: the file as it is read, with paths that are absolute.
        reference: the model to begin with.
        with_data: the data are there, not only a template's places for them.
    """

    content: str
    found: Found
    fleet: Fleet
    reference: Reference
    with_data: bool


def new_fleet(path: Path, have: Have, progress: Progress) -> New:
    """Look at what there is, and compose the file; nothing is written.

    Args:
        path: where the file will be; paths in it are relative to that.
        have: data, checkpoint and devices.
        progress: see :func:`look_at_images`.

    Raises:
        FleetError: naming the option that is wrong, and what would be right.
    """
    found = _found(path, have, progress)
    if have.template not in (None, found.template):
        raise FleetError(
            f"--template: {have.template} is not for these data, which are for {found.template}"
        )
    checkpoint = have.checkpoint or CHECKPOINTS.get(found.template)
    if checkpoint is None:
        reference = own_vit(found)
    elif found.template == "vision":
        reference = Reference(checkpoint, *shape_of_images(checkpoint, found.side))
    else:
        reference = Reference(checkpoint, shape_of_texts(checkpoint, found.tokens))
    folder = resolved(path.parent)
    placed = {key: _placed(value, folder) for key, value in found.settings.items()}
    if isinstance(checkpoint, Path) or (checkpoint and Path(checkpoint).is_dir()):
        reference = replace(reference, checkpoint=_placed(Path(checkpoint), folder))
    devices = wanted_devices(have.devices or str(_how_many(found)))
    content = written(replace(found, settings=placed), reference, devices, _name(path))
    fleet = Fleet.parse(yaml.safe_load(content), str(path)).with_paths_from(folder)
    _check_owners(found, devices)
    given = have.images or have.text or have.dataset
    return New(content, found, fleet, reference, given is not None or found.template == "vision")


def check_works(new: New) -> None:
    """Everybody gets enough samples, and each cluster a candidate that it can store.

    Data and weights are not loaded, only labels and a checkpoint.

    Raises:
        FleetError: naming the device and the numbers.
    """
    listed = list_source(new.fleet.data)
    check_shares(share_out(new.fleet, Labels.of(listed)), None)
    size, found = new.fleet.backbone.vocabulary, new.found
    shape = new.reference.shape
    inputs: dict[str, Any] = {
        name: torch.zeros(1, found.tokens, dtype=torch.int64)
        for name in ("input_ids", "attention_mask")
    }
    if found.template == "vision":
        inputs = {"pixel_values": torch.zeros(1, shape.channels, shape.side, shape.side)}
    sample = Samples(inputs, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    public = Splits(sample, sample, sample)
    kept = None if size is None else list(range(size))
    of = new.fleet, public, listed.classes, kept
    reference = untrained_reference(*of, shape_alone=True)
    shown = ImagePreprocessing.centred(1, 1, 1)  # nothing is prepared by it
    world = World({}, {}, listed.classes, shown, public, kept)
    check_feasible(new.fleet, make_plan(new.fleet, world, reference))


def can_be_checked(new: New) -> bool:
    """True if data and checkpoint are on this machine and readable."""
    checkpoint = new.reference.checkpoint
    here = checkpoint is None or not is_known(checkpoint)
    return new.with_data and here and not new.found.broken


def _found(path: Path, have: Have, progress: Progress) -> Found:
    given = {"--images": have.images, "--text": have.text, "--dataset": have.dataset}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise FleetError(f"give one of {' and '.join(named)}, not both")
    if have.images is not None:
        return look_at_images(have.images, progress)
    if have.dataset is not None:
        return look_at_dataset(have.dataset, progress)
    if have.text is not None:
        checkpoint = have.checkpoint or CHECKPOINTS["text"]
        return look_at_texts(have.text, checkpoint, _of_texts(have.template))
    if have.template is None:
        raise FleetError(
            "say what you have: --images FOLDER, --text FILE.jsonl or --dataset NAME; or begin "
            "with --template vision, text or assistant"
        )
    if have.template == "vision":
        return look_at_dataset("digits", progress)
    return _example(have.template, path.parent)


def _of_texts(template: Template | None) -> Template | None:
    if template == "vision":
        raise FleetError("--template: vision is for --images or --dataset, not for --text")
    return template


def _example(template: Template, folder: Path) -> Found:
    """A template's data, which are not there yet."""
    lines = {
        "text": '{"text": "turn the light on", "label": "light"}',
        "assistant": '{"prompt": "turn the light on", "answer": "light.on()"}',
    }
    source = "text" if template == "text" else "language"
    return Found(
        template,
        {"source": source, "train": folder / "train.jsonl", "max_tokens": 32},
        2000,
        {},
        tokens=32,
        told=[
            "a template: put your texts into train.jsonl beside this file, a JSON object a line:",
            f"  {lines[template]}",
            f"or let `acme init --text YOUR.jsonl --template {template}` look at yours",
        ],
    )


def _how_many(found: Found) -> int:
    """Devices where nobody says: one for each owner, unless they are many."""
    return min(found.owners, _MOST_DEVICES) if found.owners else _DEVICES


def _check_owners(found: Found, devices: Sequence[Wanted]) -> None:
    count = sum(len(each.names) for each in devices)
    if found.owners is not None and count > found.owners:
        column = found.settings["partition"]["column"]
        raise FleetError(
            f"--devices: {count} devices, and the column {column!r} has {found.owners} values, one "
            f"for each device; name at most {found.owners}, such as {DEFAULT_TYPE}:{found.owners}"
        )


def _placed(value: Any, folder: Path) -> Any:
    """Paths as they are seen from the fleet file's folder, where they lie in it; else absolute."""
    if isinstance(value, list):
        return [_placed(each, folder) for each in value]
    if not isinstance(value, Path):
        return value
    there = resolved(value)
    return there.relative_to(folder) if there.is_relative_to(folder) else there


def _name(path: Path) -> str:
    kept = "".join(letter for letter in path.stem if letter.isalnum() or letter in "._-")
    return kept.lstrip("._-")[:64] or "fleet"
