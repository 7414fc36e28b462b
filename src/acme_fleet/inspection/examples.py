"""Some test samples of a run's devices with the answers of their models, for the owner's report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.partition import World, load_world
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.inspection.complete import tested_texts
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.report.page.facts import listed_devices
from acme_fleet.report.page.pictures import Example, image_address
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import Summary
from acme_fleet.seeding import threads
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.evaluation import answers

_EACH = 8
_SIDE = 96  # pixels
_MOST_BYTES = 700_000  # of all
_LONGEST = 300  # characters of a text


def find_examples(run_dir: str | Path) -> dict[str, list[Example]]:
    """Test samples by device, mistakes first, of the devices that a report describes one by one.

    Raises:
        RunError: if the directory holds no finished run.
        FleetError: if the devices' data are not on this machine.
    """
    run = RunDirectory.open(run_dir)
    summary, fleet = Summary.read(run.finished()), run.fleet
    if summary.many_hosts:
        raise FleetError(
            f"--with-examples: {run.path} is a run on many hosts; the devices' test samples are on "
            f"theirs"
        )
    names = [device.name for device in listed_devices(summary.devices)]
    world = load_world(fleet, names)
    found: dict[str, list[Example]] = {}
    left = _MOST_BYTES
    with threads(fleet.threads):
        for name in names:
            if left <= 0:
                break
            folder, test = run.device(name), world.private[name].test
            if task_of(fleet.task).per_token:
                found[name] = list(_written(folder, test))
            else:
                found[name] = list(_answered(folder, world, test))
            left -= sum(len(one.image or one.text or "") for one in found[name])
    return found


def _answered(folder: Path, world: World, test: Samples) -> Iterator[Example]:
    """Half of them mistakes, where there are so many."""
    given = answers(DeviceModel.open(folder).model, test)
    wrong = torch.nonzero(given != test.labels).flatten()
    right = torch.nonzero(given == test.labels).flatten()
    mistakes = wrong[: max(_EACH // 2, _EACH - len(right))]
    for number in [*mistakes.tolist(), *right[: _EACH - len(mistakes)].tolist()]:
        names = world.classes[int(test.labels[number])], world.classes[int(given[number])]
        yield _shown(world, test[number : number + 1].inputs, *names)


def _shown(world: World, inputs: dict[str, Tensor], label: str, answer: str) -> Example:
    form = world.preprocessing
    if isinstance(form, ImagePreprocessing):
        pixels = form.original(inputs["pixel_values"][0])
        return Example(label, answer, image=image_address(pixels, _SIDE))
    return Example(label, answer, text=_text(form.ready(), inputs)[:_LONGEST])


def _written(folder: Path, test: Samples) -> Iterator[Example]:
    """Prompts with the answers in the data, and what the model writes."""
    for one in tested_texts(folder, test, _EACH // 2):
        expected, written = one.expected[:_LONGEST], one.text[:_LONGEST]
        yield Example(expected, written, text=one.prompt[-_LONGEST:], judged=False)


def _text(tokenizer: Tokenizer, inputs: dict[str, Tensor]) -> str:
    ids = inputs["input_ids"][0][inputs["attention_mask"][0] != 0]
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)
