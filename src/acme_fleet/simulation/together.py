"""Devices of one process train together what each of them would train when it is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from acme_fleet.config.personalization import Personalization
from acme_fleet.device.client import DeviceClient, stage_of
from acme_fleet.device.refinement import LocalTraining
from acme_fleet.errors import AcmeError
from acme_fleet.messages.base import Message
from acme_fleet.simulation.batched import train_headers
from acme_fleet.tasks.base import Task


def train_ahead(
    task: Task,
    devices: Mapping[str, DeviceClient],
    requests: Mapping[str, Message],
    personalization: Personalization,
    stage: Callable[[str], AbstractContextManager[object]],
) -> None:
    """Do the training that answering ``requests`` begins with, for all devices at once.

    Each device keeps its result in its own folder, where it finds it when it answers. The numbers
    are those of one device after another up to rounding.

    Args:
        task: of all.
        devices: by name.
        requests: what each of them is about to be asked.
        personalization: the settings of all.
        stage: entered with a name for what is trained, while it is.
    """
    work: defaultdict[int, dict[str, LocalTraining]] = defaultdict(dict)
    for name, message in requests.items():
        try:
            number = devices[name].pending(message)
            if number is not None:
                work[number][name] = devices[name].training(number)
        except AcmeError:
            continue  # it says so itself when it is asked
    for number, by_name in work.items():
        with stage(f"{stage_of(number, personalization)}, together: {len(by_name)}"):
            trained = train_headers(
                task,
                by_name.values(),
                personalization.training(number),
                len(by_name),
                to_mix=personalization.mixes_after(number),
            )
            for name, result in zip(by_name, trained, strict=True):
                devices[name].keep(number, result)
