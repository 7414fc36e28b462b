"""Changes from a finished run's fleet to another one, device by device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from acme_fleet.config.base import differences
from acme_fleet.config.devices import Device
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed
from acme_fleet.runs.summary import ClusterSummary, Summary

ALL = "all"
"""In place of names: every device."""
_WAITING = ("edge_quorum", "personalization.quorum", "personalization.timeout_s")


@dataclass(frozen=True)
class Had:
    """A device's part of the earlier run.

    Attributes:
        edge: its edge server.
        group: the devices that it shares a backbone and a coarse header with.
        size_bytes: of what it ships.
    """

    edge: str
    group: ClusterSummary
    size_bytes: int

    @property
    def variant(self) -> Variant:
        """Its backbone."""
        return self.group.variant


@dataclass(frozen=True)
class Changes:
    """A finished run, the fleet that it is to become, and the difference.

    Attributes:
        old, fleet: before and after.
        had: what the devices that finished have, by name.
        forced: devices of the new fleet that are computed whatever their limits, and why.
    """

    old: Fleet
    fleet: Fleet
    had: dict[str, Had]
    forced: dict[str, str]

    @staticmethod
    def between(old: Fleet, summary: Summary, fleet: Fleet, refresh: Collection[str]) -> Changes:
        """Compare; ``refresh`` names devices that train again, or is ``all``.

        Raises:
            FleetError: if a setting differs that decides what would be kept, or a name is unknown.
        """
        fleet = _dealt_as(old, fleet, many_hosts=summary.many_hosts)
        _check_same(old, fleet)
        names = {device.name for device in fleet.devices}
        if unknown := sorted({*refresh} - names - {ALL}):
            raise FleetError(f"--refresh: the fleet has no device {unknown[0]!r}")
        clusters = {cluster.name: cluster for cluster in summary.clusters}
        had = {
            device.name: Had(
                clusters[device.cluster].edge, clusters[device.cluster], device.size_bytes
            )
            for device in summary.devices
        }
        before = {device.name: device for device in old.devices}
        again = names if ALL in refresh else {*refresh}
        forced: dict[str, str] = {}
        for cluster in fleet.clusters:
            for device in cluster.devices:
                known = before.get(device.name)
                why = _forced(device, known, had.get(device.name), cluster.name)
                why = why or ("it was asked to train again" if device.name in again else None)
                if why is not None:
                    forced[device.name] = why
        return Changes(old, fleet, had, forced)

    @property
    def left(self) -> list[str]:
        """Devices that are not in the fleet any more."""
        names = {device.name for device in self.fleet.devices}
        return [device.name for device in self.old.devices if device.name not in names]

    @property
    def same_data(self) -> bool:
        """True if the same devices have the same data, as far as one can tell."""
        return not self.left and not self.forced

    def device(self, name: str) -> Device:
        """A device of the new fleet."""
        return next(device for device in self.fleet.devices if device.name == name)

    def has_other_limits(self, name: str) -> bool:
        """True if a device that had a model stores, spends or executes something else now."""
        old = next(device for device in self.old.devices if device.name == name)
        new = self.device(name)
        keys = "storage", "energy", "precisions"
        return any(getattr(old, key) != getattr(new, key) for key in keys)


def _forced(device: Device, known: Device | None, had: Had | None, edge: str) -> str | None:
    if known is None:
        return "it joined"
    if had is None:
        return "it had not finished"
    if had.edge != edge:
        return f"it came from {had.edge}"
    if known.data != device.data:
        return "it has new data"
    return None


def _dealt_as(old: Fleet, fleet: Fleet, *, many_hosts: bool) -> Fleet:
    """The fleet with shares of the data set as they were dealt, whoever has left since."""
    dealt = old.data.dealt_to
    if dealt is None:
        dealt = [device.name for device in old.devices if device.data is None]
    if not dealt and all(device.data is not None for device in fleet.devices):
        return fleet
    if fleet.data.dealt_to not in (None, dealt):
        raise FleetError(
            f"data.dealt_to: the run dealt its data to {listed(dealt, 10)}, in this order; leave "
            f"the key out"
        )
    if many_hosts and fleet.data.dealt_to is None:
        raise FleetError(
            f"data: each host must know to whom the shares of the data set were dealt; write "
            f"dealt_to: [{', '.join(dealt)}] below data into the fleet file of every host"
        )
    data = fleet.data.model_copy(update={"dealt_to": dealt})
    return fleet.model_copy(update={"data": data})


def _check_same(old: Fleet, fleet: Fleet) -> None:
    """Refuse another setting than devices, clusters, and how long one waits for whom."""

    def settings(each: Fleet) -> dict[str, Any]:
        content = each.model_dump(mode="json", exclude={"clusters"})
        content["data"].pop("dealt_to")
        return content

    found = [
        told
        for told in differences(settings(old), settings(fleet))
        if told.partition(":")[0] not in _WAITING
    ]
    edges = {cluster.name: cluster.data for cluster in old.clusters}
    found += [
        f"clusters.{cluster.name}.data: {edges[cluster.name]} there, {cluster.data} here"
        for cluster in fleet.clusters
        if cluster.name in edges and edges[cluster.name] != cluster.data
    ]
    if found:
        raise FleetError(
            f"an update takes over what these settings decide, and they differ: "
            f"{'; '.join(found[:3])}; put them back, or start a run of its own: acme run"
        )
