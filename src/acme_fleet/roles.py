"""The roles with their data and folders; which link they talk over is not their business.

A role is imported when it is made: a device need not load what only its edge server computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from acme_fleet.config.devices import Cluster, Device
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import Holdings, World
from acme_fleet.links.base import Link
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.group import ALONE, Group

if TYPE_CHECKING:
    from acme_fleet.cloud.server import CloudServer
    from acme_fleet.device.client import DeviceClient
    from acme_fleet.device.memory import FeatureMemory
    from acme_fleet.edge.server import EdgeServer
    from acme_fleet.models.features import Classifier

FindRun = Callable[[str], RunDirectory]
"""Finds the directory of an earlier run by its identity, for an update."""


def device_role(
    fleet: Fleet,
    device: Device,
    data: Holdings,
    run: RunDirectory,
    journal: Journal,
    memory: FeatureMemory | None = None,
    earlier: FindRun | None = None,
) -> DeviceClient:
    """A device with its private data; devices of one process share a ``memory``."""
    from acme_fleet.device.client import DeviceClient
    from acme_fleet.device.kept import keep_device

    def keep(identity: str) -> None:
        assert earlier is not None
        keep_device(earlier(identity), run, device.name)

    return DeviceClient(
        device,
        task_of(fleet.task),
        fleet.personalization,
        partial(data.splits, device.name),
        run.device(device.name),
        fleet.seed,
        journal,
        memory,
        keep if earlier else None,
    )


def edge_role(
    fleet: Fleet,
    cluster: Cluster,
    data: Holdings,
    devices: Link,
    run: RunDirectory,
    journal: Journal,
    earlier: FindRun | None = None,
) -> EdgeServer:
    """An edge server with its shared data."""
    from acme_fleet.edge.server import EdgeServer

    def folder(identity: str) -> Path:
        assert earlier is not None
        return earlier(identity).edge(cluster.name)

    return EdgeServer(
        cluster.name,
        fleet,
        partial(data.samples, cluster.name),
        devices,
        run.edge(cluster.name),
        journal,
        folder if earlier else None,
    )


def cloud_role(
    fleet: Fleet,
    world: World,
    edges: Link,
    run: RunDirectory,
    journal: Journal,
    reference: Classifier,
    group: Group = ALONE,
) -> CloudServer:
    """The cloud server with its public data, and θ0 as ``untrained_reference`` gives it.

    Processes of a ``group`` train with it.
    """
    from acme_fleet.cloud.crew import Crew
    from acme_fleet.cloud.server import CloudServer

    return CloudServer(
        fleet,
        world.public,
        world.classes,
        world.preprocessing.model_dump(mode="json"),
        edges,
        run.cloud,
        journal,
        reference,
        Crew(group),
    )
