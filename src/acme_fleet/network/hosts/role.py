"""The process that holds an edge's or a device's role for as long as its host is up."""

from __future__ import annotations

import signal
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import HostData
from acme_fleet.errors import ProtocolError
from acme_fleet.failures import own_process
from acme_fleet.messages.base import Message
from acme_fleet.messages.cloud_edge import BackboneAssignment, TakeoverRequest
from acme_fleet.messages.edge_device import (
    HeaderAssignment,
    KeepRequest,
    ProfileRequest,
    ReportRequest,
)
from acme_fleet.network.flower.channel import Channel
from acme_fleet.network.flower.link import FlowerLink, RunIdentity
from acme_fleet.network.flower.role_host import Board, HostedRun, RoleHost
from acme_fleet.network.hosts.site import Site, fingerprint
from acme_fleet.network.hosts.superlink import SuperLink
from acme_fleet.personalization.rules import rule_of
from acme_fleet.roles import device_role, edge_role
from acme_fleet.runs.atomic import remove_partial
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.runs.locks import held
from acme_fleet.seeding import threads

_EDGE_ANSWERS: list[type[Message]] = [ProfileRequest, TakeoverRequest, BackboneAssignment]


def serve_role(path: Path) -> None:
    """Hold the role of a site file until the process is told to stop.

    Raises:
        FleetError: if the site file, the fleet or its data are wrong.
        RunError: if another process holds the role already.
    """
    site = Site.from_yaml(path)
    fleet = site.load_fleet()
    runs = _DeviceRuns(site, fleet) if site.role == "device" else _EdgeRuns(site, fleet)
    host = RoleHost(site.role_socket, fingerprint(fleet), runs.answers, runs.open)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: host.close())
    with threads(fleet.threads), held(_runs(site), private=True):
        host.serve()


def run_directory(site: Site, fleet: Fleet, run: str) -> RunDirectory:
    """A host's run directory; laid out as on one machine, with this host's part only."""
    directory = RunDirectory.create(_runs(site) / run, fleet, resume=True)
    remove_partial(directory.path)  # of processes that were killed
    return directory


def _earlier(site: Site, run: str) -> RunDirectory:
    """This host's part of an earlier run.

    Raises:
        ProtocolError: if it has none.
    """
    directory = RunDirectory(_runs(site) / run)
    if not directory.path.is_dir():
        raise ProtocolError(
            f"{site.name} has no {directory.path}, its part of the earlier run; put back a copy"
        )
    return directory


def _runs(site: Site) -> Path:
    """The folder of all runs, which a host's role holds while it is up."""
    return site.state / "runs"


class _DeviceRuns:
    """A device's part in runs."""

    def __init__(self, site: Site, fleet: Fleet) -> None:
        rule = rule_of(fleet.personalization)
        in_rounds: list[type[Message]] = [rule.start_type, rule.update_type]
        others = [ProfileRequest, KeepRequest, HeaderAssignment, ReportRequest]
        self.answers: list[type[Message]] = [*others, *in_rounds]
        import_module("acme_fleet.device.client")  # now, not when the first question waits
        self._site, self._fleet = site, fleet
        self._device = next(d for d in fleet.devices if d.name == site.name)
        self._data = HostData.read(fleet, site.name)

    def open(self, run: str) -> HostedRun:
        directory, board = run_directory(self._site, self._fleet, run), Board()
        journal = Journal(directory.events, board)
        earlier = partial(_earlier, self._site)
        known = self._fleet, self._device, self._data
        role = device_role(*known, directory, journal, earlier=earlier)
        return HostedRun(role, journal, directory.events, board, directory.path / "replies")


class _EdgeRuns:
    """An edge server's part in runs."""

    answers = _EDGE_ANSWERS

    def __init__(self, site: Site, fleet: Fleet) -> None:
        import_module("acme_fleet.edge.server")
        self._site, self._fleet = site, fleet
        self._cluster = next(c for c in fleet.clusters if c.name == site.name)
        self._data = HostData.read(fleet, site.name)
        self._superlink = SuperLink(site)
        self._channel = Channel(site.relay_socket, self._superlink.start_relay)

    def open(self, run: str) -> HostedRun:
        directory, board = run_directory(self._site, self._fleet, run), Board()
        journal = Journal(directory.events, board)
        devices = FlowerLink(
            self._site.name,
            self._channel,
            self._superlink.nodes(self._site.members(self._fleet)),
            RunIdentity(run, fingerprint(self._fleet)),
            journal,
            "device",
            board,
            self._site.grace_s,
        )
        earlier = partial(_earlier, self._site)
        known = self._fleet, self._cluster, self._data
        role = edge_role(*known, devices, directory, journal, earlier)
        return HostedRun(role, journal, directory.events, board, replies=None)


def main() -> int:
    """The process's own command."""
    return own_process(lambda: serve_role(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
