"""``acme run --engine flower``: the cloud's role, its edges reached over Flower."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World
from acme_fleet.errors import FleetError, RunError
from acme_fleet.links.base import Link
from acme_fleet.network.flower.channel import Channel
from acme_fleet.network.flower.link import FlowerLink, RunIdentity
from acme_fleet.network.hosts.site import Site, fingerprint
from acme_fleet.network.hosts.superlink import SuperLink
from acme_fleet.pipeline import Connect, customize
from acme_fleet.runs.directory import Identity, RunDirectory
from acme_fleet.runs.journal import Journal, Observer
from acme_fleet.runs.sealed import write_sealed_json
from acme_fleet.runs.summary import Summary
from acme_fleet.updates.update import update


def customize_over_flower(
    fleet: Fleet, out: Path, config: Path, *, resume: bool, observer: Observer | None
) -> Summary:
    """As :func:`acme_fleet.pipeline.customize`, on this cloud host and those that dial it.

    Raises:
        FleetError: also if the site file is wrong, or of a fleet that differs.
        RunError: also if the host's SuperLink is not up, or an edge server cannot be reached.
    """
    connect = _over_flower(fleet, config, observer)
    return customize(fleet, out, resume=resume, observer=observer, connect=connect)


def update_over_flower(
    previous: Path, fleet: Fleet, out: Path, *, refresh: Collection[str], observer: Observer | None
) -> Summary:
    """As :func:`acme_fleet.updates.update.update`, of a run on many hosts, on its cloud host.

    Raises:
        FleetError, RunError: as :func:`customize_over_flower`.
    """
    config = Path(RunDirectory.open(previous).on_hosts().config)
    connect = _over_flower(fleet, config, observer)
    return update(previous, fleet, out, refresh=refresh, observer=observer, connect=connect)


def _over_flower(fleet: Fleet, config: Path, observer: Observer | None) -> Connect:
    """The way from the cloud host with this site file to its edge servers."""
    site = Site.from_yaml(config)
    if site.role != "cloud":
        raise FleetError(f"{config} is of a host whose role is {site.role}, not cloud")
    if fingerprint(site.load_fleet()) != fingerprint(fleet):
        raise FleetError(
            f"the fleet or its seed differs from {site.fleet}, which {config} names; all hosts "
            f"must have the same"
        )

    @contextmanager
    def connect(_: Fleet, __: World, run: RunDirectory, journal: Journal) -> Iterator[Link]:
        identity = RunIdentity(_identity(run, config), fingerprint(fleet))
        superlink = SuperLink(site)
        nodes = superlink.nodes(site.members(fleet))
        channel = Channel(site.relay_socket, superlink.start_relay)
        try:
            link = FlowerLink(
                "cloud",
                channel,
                nodes,
                identity,
                journal,
                "cloud",
                observer,
                site.grace_s,
                {cluster.name: [d.name for d in cluster.devices] for cluster in fleet.clusters},
            )
            if away := link.unreachable(site.grace_s):  # before hours of training
                reasons = "; ".join(f"{name}: {reason}" for name, reason in away.items())
                raise RunError(f"not all edge servers can be asked: {reasons}")
            yield link
        finally:
            channel.close()

    return connect


def _identity(run: RunDirectory, config: Path) -> str:
    """The run's identity among runs of the same fleet, equal on every host and after a restart."""
    path = run.identity
    if not path.exists():
        identity = Identity(secrets.token_hex(16), str(config.resolve()))
        write_sealed_json(path, asdict(identity))
    return run.on_hosts().run
