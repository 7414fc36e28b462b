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
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.partition import World, check_shares, load_world, public_vocabulary
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.data.shares import Labels, Shares, share_out
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import check_feasible, make_plan
from acme_fleet.models.backbone.checkpoints import check_kind
from acme_fleet.outside import resolved
from acme_fleet.report.warnings import FEW
from acme_fleet.starting.devices import DEFAULT_TYPE, Wanted, wanted_devices
from acme_fleet.starting.have import Have, Template
from acme_fleet.starting.look import (
    Found,
    Progress,
    counted_again,
    look_at_dataset,
    look_at_images,
    look_at_texts,
)
from acme_fleet.starting.shape import is_known, shape_of_images, shape_of_texts
from acme_fleet.starting.written import LEVELS, Reference, own_vit, written

CHECKPOINTS: dict[Template, str] = {
    "text": "sentence-transformers/all-MiniLM-L6-v2",
    "assistant": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Checkpoints for texts where none is named."""
_DEVICES = 4
_MOST_DEVICES = 12  # where the data say how many owners there are


@dataclass(frozen=True)
class New:
    """A fleet file to be written.

    Attributes:
        path: where it will be.
        content: its text.
        found: the data; of a template alone what stands for them.
        fleet: the file as it is read, with paths that are absolute.
        reference: the model to begin with.
        devices: who gets a model.
        with_data: the data are there, not only a template's places for them.
        problem: why its plan does not work out; none if it does, or was not tried.
    """

    path: Path
    content: str
    found: Found
    fleet: Fleet
    reference: Reference
    devices: Sequence[Wanted]
    with_data: bool
    problem: str | None = None


def new_fleet(path: Path, have: Have, progress: Progress) -> New:
    """Look at what there is, and compose the file; nothing is written.

    Args:
        path: where the file will be; paths in it are relative to that.
        have: data, checkpoint and devices.
        progress: see :func:`look_at_images`.

    Raises:
        FleetError: naming the option that is wrong, and what would be right.
    """
    have.check()
    if have.checkpoint is not None and (have.images or have.dataset):
        check_kind(have.checkpoint, images=True)  # before all images are decoded
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
    devices = wanted_devices(have.devices or str(_how_many(found)))
    _check_owners(found, devices)
    given = have.images or have.text or have.dataset
    with_data = given is not None or found.template == "vision"
    new = _composed(path, found, reference, devices, with_data)
    if found.texts and new.fleet.backbone.vocabulary and can_be_checked(new):
        return _in_its_vocabulary(new)
    return new


def _composed(
    path: Path,
    found: Found,
    reference: Reference,
    devices: Sequence[Wanted],
    with_data: bool,
    level: int = 0,
) -> New:
    """The file; ``level`` is the range of its candidates."""
    folder, checkpoint = resolved(path.parent), reference.checkpoint
    settings = {key: _placed(value, folder) for key, value in found.settings.items()}
    placed = reference
    if isinstance(checkpoint, Path) or (checkpoint and Path(checkpoint).is_dir()):
        placed = replace(reference, checkpoint=_placed(Path(checkpoint), folder))
    content = written(replace(found, settings=settings), placed, devices, _name(path), level)
    fleet = Fleet.parse(yaml.safe_load(content), str(path)).with_paths_from(folder)
    return New(path, content, found, fleet, reference, devices, with_data)


def _in_its_vocabulary(new: New) -> New:
    """The same, with texts as long as they are in the smaller vocabulary that the run makes."""
    fleet, checkpoint = new.fleet, new.reference.checkpoint
    assert checkpoint is not None
    assert fleet.backbone.vocabulary is not None
    reader = TextPreprocessing if new.found.template == "text" else LanguagePreprocessing
    whole = reader.of_checkpoint(checkpoint, fleet.data.max_tokens)
    kept = public_vocabulary(fleet, whole, fleet.backbone.vocabulary)
    found = counted_again(new.found, whole.cut(kept), checkpoint)
    reference = replace(new.reference, shape=replace(new.reference.shape, tokens=found.tokens))
    return _composed(new.path, found, reference, new.devices, new.with_data)


def tried(new: New) -> New:
    """The file after its plan was tried, with smaller candidates where a device needs them.

    Everybody must get enough samples, and each cluster a candidate that it can store. Of images
    only the labels are read. :attr:`New.problem` tells what does not work out; ``found.told`` gets
    a line on the samples of a device, and on smaller candidates.
    """
    try:
        shares = share_out(new.fleet, Labels.of(list_source(new.fleet.data)))
        check_shares(shares, None)
        world = _world(new)
        of = new.fleet, world.public, world.classes, world.vocabulary
        reference = untrained_reference(*of, shape_alone=True)
    except FleetError as error:
        return replace(new, problem=str(error))
    told, of_level = [_about_shares(shares)], new
    for level in range(LEVELS):
        found = replace(new.found, told=[*new.found.told, *told])
        of_level = _composed(new.path, found, new.reference, new.devices, new.with_data, level)
        try:
            check_feasible(of_level.fleet, make_plan(of_level.fleet, world, reference))
        except FleetError as error:
            of_level = replace(of_level, problem=str(error))
            told = [
                told[0],
                "candidates smaller than usual are among them, for small devices",
            ]
        else:
            break
    return of_level


def _about_shares(shares: Shares) -> str:
    """The samples that devices get, and if these are few."""
    parts = list(zip(*(map(len, three) for three in shares.devices.values()), strict=True))
    train, validation, test = (
        f"{min(part)}" if min(part) == max(part) else f"{min(part)} to {max(part)}"
        for part in parts
    )
    told = (
        f"a device gets {train} samples to train on, {validation} to validate on, {test} to test on"
    )
    if min(*parts[1], *parts[2]) < FEW:
        told += f"; fewer than {FEW} say little: name fewer devices, or give more data"
    return told


def _world(new: New) -> World:
    """The public samples: all texts as a run reads them; for images one that stands for all."""
    if new.found.template != "vision":
        return load_world(new.fleet)
    shape, classes = new.reference.shape, list_source(new.fleet.data).classes
    inputs = {"pixel_values": torch.zeros(1, shape.channels, shape.side, shape.side)}
    sample = Samples(inputs, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    shown = ImagePreprocessing.centred(1, 1, 1)  # nothing is prepared by it
    return World({}, {}, classes, shown, Splits(sample, sample, sample))


def can_be_checked(new: New) -> bool:
    """True if data and checkpoint are on this machine and readable."""
    checkpoint = new.reference.checkpoint
    here = checkpoint is None or not is_known(checkpoint)
    return new.with_data and here and not new.found.broken


def advice(new: New) -> list[str]:
    """Lines on what would be better than the file as it is, or could not be tried."""
    checkpoint = new.reference.checkpoint
    if checkpoint is None:
        return [
            "the run trains its reference from your public images alone, which is weak with few: "
            "better is a pre-trained one, --checkpoint FOLDER or facebook/dinov2-small of the hub"
        ]
    if new.with_data and is_known(checkpoint):
        return [
            f"the plan was not tried: {checkpoint} is downloaded from the hub by check and run; "
            f"without a network name a model that is here: --checkpoint FOLDER"
        ]
    return []


def _found(path: Path, have: Have, progress: Progress) -> Found:
    if have.images is not None:
        return look_at_images(have.images, progress)
    if have.dataset is not None:
        return look_at_dataset(have.dataset, progress)
    if have.text is not None:
        checkpoint = have.checkpoint or CHECKPOINTS["text"]
        return look_at_texts(have.text, checkpoint, have.template)
    if have.template == "vision":
        return look_at_dataset("digits", progress)
    assert have.template is not None
    return _example(have.template, path.parent)


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
