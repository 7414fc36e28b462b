"""Devices of one process train together what each of them would train when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from acme_fleet.device.batched import LocalTraining, train_headers
from acme_fleet.device.client import DeviceClient
from acme_fleet.errors import AcmeError
from acme_fleet.fleet import Training
from acme_fleet.messages import Message


def train_ahead(
    devices: Mapping[str, DeviceClient],
    requests: Mapping[str, Message],
    training: Training,
    progress: AbstractContextManager[object],
) -> None:
    """Do the training that answering ``requests`` begins with, for all devices at once.

    Each device keeps its result in its own folder, where it finds it when it answers. The numbers
    are those of one device after another up to rounding.

    Args:
        devices: by name.
        requests: what each of them is about to be asked.
        training: the local training of all.
        progress: entered while there is something to train.
    """
    work: dict[tuple[str, int], LocalTraining] = {}
    for name, message in requests.items():
        try:
            number = devices[name].pending(message)
            if number is not None:
                work[name, number] = devices[name].training(number)
        except AcmeError:
            continue  # it says so itself when it is asked
    if not work:
        return
    with progress:
        trained = train_headers(work.values(), training, len(work))
        for (name, number), result in zip(work, trained, strict=True):
            devices[name].keep(number, result)
