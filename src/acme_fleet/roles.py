"""The roles with their data and folders; which link they talk over is not their business.

A role is imported when it is made: a device need not load what only its edge server computes with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from acme_fleet.config.devices import Cluster, Device
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World
from acme_fleet.links.base import Link
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.tasks.registry import task_of

if TYPE_CHECKING:
    from acme_fleet.cloud.server import CloudServer
    from acme_fleet.device.client import DeviceClient
    from acme_fleet.edge.server import EdgeServer


def device_role(
    fleet: Fleet, device: Device, world: World, run: RunDirectory, journal: Journal
) -> DeviceClient:
    """A device with its private data."""
    from acme_fleet.device.client import DeviceClient

    return DeviceClient(
        device,
        task_of(fleet.task),
        fleet.personalization,
        world.private[device.name],
        run.device(device.name),
        fleet.seed,
        journal,
    )


def edge_role(
    fleet: Fleet, cluster: Cluster, world: World, devices: Link, run: RunDirectory, journal: Journal
) -> EdgeServer:
    """An edge server with its shared data."""
    from acme_fleet.edge.server import EdgeServer

    return EdgeServer(
        cluster.name,
        fleet,
        world.shared[cluster.name],
        devices,
        run.edge(cluster.name),
        journal,
    )


def cloud_role(
    fleet: Fleet, world: World, edges: Link, run: RunDirectory, journal: Journal
) -> CloudServer:
    """The cloud server with its public data."""
    from acme_fleet.cloud.server import CloudServer

    return CloudServer(
        fleet,
        world.public,
        world.classes,
        world.preprocessing.model_dump(mode="json"),
        edges,
        run.cloud,
        journal,
    )
