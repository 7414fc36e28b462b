"""The update of a run whose roles have folders of their own, as on many hosts, without Flower."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World, load_world
from acme_fleet.errors import FleetError, RunError
from acme_fleet.links.base import Link
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.pipeline import Connect, customize
from acme_fleet.roles import device_role, edge_role
from acme_fleet.runs.directory import Identity, RunDirectory
from acme_fleet.runs.journal import Journal, Observer
from acme_fleet.runs.sealed import write_sealed_json
from acme_fleet.runs.summary import Summary
from acme_fleet.updates.update import update
from tiny_fleet import SHORT, tiny


@dataclass(frozen=True)
class Hosts:
    """A folder for each host, with its part of all runs."""

    folder: Path

    def run(self, name: str, identity: str) -> RunDirectory:
        return RunDirectory(self.folder / name / identity)

    def connect(self, fleet: Fleet) -> Connect:
        """The way to roles that have nothing in common but messages."""

        @contextmanager
        def link(_: Fleet, __: World, run: RunDirectory, journal: Journal) -> Iterator[Link]:
            if not run.identity.exists():
                number = len(list((self.folder / "cam-2").glob("*")))
                write_sealed_json(run.identity, asdict(Identity(f"{number:032x}", "cloud.yaml")))
            here, world, edges = run.on_hosts().run, load_world(fleet), {}

            def own(name: str) -> dict[str, Any]:
                directory = RunDirectory.create(self.run(name, here).path, fleet, resume=True)
                return {"run": directory, "earlier": partial(self.run, name)}

            for cluster in fleet.clusters:
                devices = {
                    device.name: device_role(
                        fleet, device, world, journal=journal, **own(device.name)
                    )
                    for device in cluster.devices
                }
                below = EmbeddedLink(cluster.name, devices, journal, "device")
                told = own(cluster.name)
                edges[cluster.name] = edge_role(
                    fleet, cluster, world, below, journal=journal, **told
                )
            yield EmbeddedLink("cloud", edges, journal, "cloud")

        return link

    def files(self, name: str, run: RunDirectory) -> dict[str, bytes]:
        """All that a device keeps of a run."""
        folder = self.run(name, run.on_hosts().run).device(name)
        return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Deployed:
    """A run on hosts, the same on one machine, and the fleet that both are to become."""

    hosts: Hosts
    run: RunDirectory
    embedded: Path
    fleet: Fleet


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Every device has a backbone of its own kind; one leaves, one joins in the place of one."""
    folder = tmp_path_factory.mktemp("deployed")
    fleet = tiny(**SHORT, selection={"matching": "device"})
    hosts, run = Hosts(folder / "hosts"), RunDirectory(folder / "run")
    customize(fleet, run.path, connect=hosts.connect(fleet))
    customize(fleet, folder / "embedded")
    digits = datasets.load_digits()
    np.savez(folder / "own.npz", images=digits.images[:120] / 16, labels=digits.target[:120])
    content = fleet.model_dump(mode="json")
    north, south = content["clusters"]
    joins = north["devices"][0] | {"name": "cam-9", "data": str(folder / "own.npz")}
    north["devices"] += [joins]
    south["devices"] = south["devices"][:1]
    content["data"]["dealt_to"] = [device.name for device in fleet.devices]
    return Deployed(hosts, run, folder / "embedded", Fleet.parse(content))


class Stop(Observer):
    def stage(self, actor: str, name: str, *_: object) -> None:
        if (actor, name) == ("cam-9", "fine-tuning"):
            raise KeyboardInterrupt


def test_update_is_that_of_one_machine_also_after_a_stop(deployed: Deployed, tmp_path: Path):
    new, hosts = deployed.fleet, deployed.hosts
    expected = update(deployed.embedded, new, tmp_path / "embedded", refresh=["badge-1"])
    old, run = deployed.run, RunDirectory(tmp_path / "run")
    before = {name: hosts.files(name, old) for name in ("cam-1", "cam-2", "badge-1")}
    way = hosts.connect(new)
    with pytest.raises(KeyboardInterrupt):
        update(old.path, new, run.path, refresh=["badge-1"], connect=way, observer=Stop())
    assert "--engine flower --config cloud.yaml" in run.resume_command
    summary = customize(new, run.path, resume=True, connect=way)
    assert summary.update is not None
    assert expected.update is not None
    assert summary.update.kept == expected.update.kept == ["cam-1", "cam-2"]
    assert summary.update.computed == expected.update.computed
    assert summary.update.left == ["badge-2"]
    for name in ("cam-1", "cam-2"):
        assert hosts.files(name, run) == before[name], name
    for device in new.devices:
        shipped = (
            tmp_path / "embedded" / "devices" / device.name / "model.safetensors"
        ).read_bytes()
        assert hosts.files(device.name, run)["model.safetensors"] == shipped, device.name
    assert {name: hosts.files(name, old) for name in before} == before, "an earlier run was changed"
    # An update of an update, in which nothing changes, computes nothing.
    again = update(run.path, new, tmp_path / "again", connect=way)
    assert again.update is not None
    assert again.update.computed == {}
    assert hosts.files("cam-9", RunDirectory(tmp_path / "again")) == hosts.files("cam-9", run)


def test_refusal_names_who_cannot_keep_what_they_have(deployed: Deployed, tmp_path: Path):
    hosts, old = deployed.hosts, deployed.run
    identity = old.on_hosts().run
    device = hosts.run("cam-1", identity).device("cam-1")
    edge = hosts.run("north", identity).edge("north")

    def refused() -> str:
        with pytest.raises(RunError, match="nothing was computed") as error:
            update(
                old.path, deployed.fleet, tmp_path / "run", connect=hosts.connect(deployed.fleet)
            )
        assert not list(tmp_path.iterdir())
        return str(error.value)

    for folder, told in (
        (device, "cam-1 holds no finished model of cam-1; put back a copy, or let the device"),
        (edge, "holds no header of that run; put back a copy of the folder, or give the cluster"),
    ):
        away = folder.rename(folder.with_name("away"))
        assert told in refused()
        shutil.rmtree(folder, ignore_errors=True)
        away.rename(folder)
    with (device / "model.safetensors").open("r+b") as file:
        whole = file.read()
        file.seek(0)
        file.write(b"x")
    assert "cam-1/model.safetensors is not as the run left it" in refused()
    (device / "model.safetensors").write_bytes(whole)


def test_shares_are_in_the_fleet_file_of_every_host(deployed: Deployed, tmp_path: Path):
    content = deployed.fleet.model_dump(mode="json")
    content["data"]["dealt_to"] = None
    fleet = Fleet.parse(content)
    with pytest.raises(FleetError, match=r"dealt_to: \[cam-1, cam-2, badge-1, badge-2\] below"):
        update(deployed.run.path, fleet, tmp_path / "run", connect=deployed.hosts.connect(fleet))
    with pytest.raises(RunError, match="is a run on many hosts, each of which has its part of it"):
        update(deployed.run.path, deployed.fleet, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert Summary.read(deployed.run.summary).many_hosts
