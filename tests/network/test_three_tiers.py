"""The whole chain on one machine: TLS, registered keys, the proxy, two edges with two devices.

The hosts are started once. Every test gets them all up, and makes a run of its own.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import damaged, garbage, misshapen, not_numbers, withheld

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World, load_world
from acme_fleet.errors import ProtocolError
from acme_fleet.links.base import Handler, Link
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.messages.base import Message
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.site import Site
from acme_fleet.network.hosts.superlink import SuperLink, registered
from acme_fleet.network.hosts.up import services
from acme_fleet.pipeline import customize
from acme_fleet.roles import device_role, edge_role
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.events import FaultEvent, messages_of, stages_of
from acme_fleet.runs.journal import Journal, read_events
from acme_fleet.runs.summary import Summary
from acme_research.frame.loopback import (
    Hosts,
    cpu_s,
    descendants,
    finish,
    hosts_up,
    short_folder,
    wait_for,
)
from tiny_fleet import tiny

_RUN_S = 420
_GRACE_S = 120
_SEARCH = 120  # steps: seconds in which an edge's role can be killed


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    changes = {
        "reference.training.epochs": 3,
        "backbone.distillation.training.epochs": 1,
        "search.steps": _SEARCH,
        "search.rivals": False,
        "personalization.rounds": 2,
        "personalization.mix": "both",
    }
    return tiny(**changes)


@dataclass(frozen=True)
class Embedded:
    """The run with all roles in one process."""

    path: Path
    summary: Summary

    def model(self, device: str) -> bytes:
        return (self.path / "devices" / device / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    path = tmp_path_factory.mktemp("embedded") / "run"
    return Embedded(path, customize(fleet, path))


@pytest.fixture(scope="module")
def deployment(fleet: Fleet) -> Iterator[Hosts]:
    """All hosts, the state of one edge on a small disk of its own where that is permitted."""
    with short_folder() as folder:
        hosts = Hosts(folder, fleet, {"grace_s": _GRACE_S})
        disk = hosts.state("south")
        disk.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=192m", "acme-test", str(disk)]
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
        try:
            with hosts_up(hosts):
                yield hosts
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def hosts(deployment: Hosts) -> Hosts:
    """All hosts, also those that another test has stopped."""
    stopped = [name for name in deployment.names if name not in deployment.processes]
    deployment.up(*stopped)
    deployment.wait_up(*stopped)
    return deployment


# They hold a latency that was measured, whose number of digits varies.
_MEASURED = {"DeviceReport": 32, "ClusterReport": 64}


def _messages(path: Path) -> Counter[tuple[str, str, str, int]]:
    """Messages with their exact sizes, but for those that hold a measured number."""
    return Counter(
        (m.sender, m.receiver, m.type, 0 if m.type in _MEASURED else m.size_bytes)
        for m in messages_of(read_events(path))
    )


def _measured(path: Path) -> dict[tuple[str, str], int]:
    measured = [m for m in messages_of(read_events(path)) if m.type in _MEASURED]
    return {(m.sender, m.type): m.size_bytes for m in measured}


def _stages(path: Path) -> Counter[tuple[str, str]]:
    """Stages of the three tiers; rivals are measured where one machine has all data."""
    stages = stages_of(read_events(path))
    return Counter((e.actor, e.stage) for e in stages if e.tier != "rivals")


# --- a run as it should be, and who else can get in ---------------------------------------------


def test_the_same_models_bytes_and_report_as_embedded(
    fleet: Fleet, hosts: Hosts, expected: Embedded
):
    found = finish(hosts.run(out="same"), hosts, "same", _RUN_S)
    for device in fleet.devices:
        assert hosts.model("same", device.name) == expected.model(device.name), device.name
    events, known = hosts.folder / "same" / "events.jsonl", expected.path / "events.jsonl"
    assert _messages(events) == _messages(known)
    assert _stages(events) == _stages(known)
    sizes = _measured(events)
    for (sender, kind), size in _measured(known).items():
        assert abs(sizes[sender, kind] - size) <= _MEASURED[kind]
    traffic = expected.summary.traffic.model_dump()
    assert found.traffic.model_dump() == pytest.approx(traffic, abs=6 * 64, rel=0.01)
    # Latency is measured; rivals, samples and classes are known where one machine has all data.
    rivals = ("accuracy_probe", "accuracy_probe_averaged", "accuracy_reference")
    counts = {"train_samples": 0, "validation_samples": 0, "classes": {}}
    unlike = {"latency_s": 0.0, **dict.fromkeys(rivals), **counts}
    assert [d.model_copy(update=unlike) for d in found.devices] == [
        d.model_copy(update=unlike) for d in expected.summary.devices
    ]
    assert all(cluster.lost == {} for cluster in found.clusters)
    page = (hosts.folder / "same" / "report.html").read_text()
    assert "badge-2" in page
    assert "What the network engine cost" in page
    assert not (hosts.folder / "same" / "devices").exists(), "models stay on the devices"


def test_nobody_else_gets_in(hosts: Hosts):
    _only_the_fleet_path_is_reachable(hosts)
    _only_the_proxies_listen_outside(hosts)
    _unknown_key_is_refused(hosts)


def _only_the_fleet_path_is_reachable(hosts: Hosts) -> None:
    """A node's path reaches the SuperLink, which asks for its key; all others end at the proxy."""
    for server in ("cloud", "north"):
        site = Site.from_yaml(hosts.config(server))
        pull = "/v1/fleet/pull-messages"
        asked = partial(_post, site.port, pull, site.keys / "ca.crt")
        wait_for(lambda asked=asked: asked() != 503, 60)  # busy until its waiting room is there
        paths = {
            pull: None,
            "/v1/control/start-run": 404,
            "/v1/control/register-node": 404,
            "/v1/runtime/push-messages": 404,
            "/v1/fleet/../control/start-run": 404,
            "/v1/fleet/%2e%2e/control/start-run": 404,
            "/v1/fleet/register-node": 404,
            "/docs": 404,
            "/": 404,
        }
        for path, expected in paths.items():
            status = _post(site.port, path, hosts.keys(server) / "ca.crt")
            assert status == expected if expected else status in (400, 401, 415, 422), path
        # The paths are right: on the loopback interface they are there.
        assert _post(site.local_port, "/v1/control/start-run", site.keys / "ca.crt") != 404


def _post(port: int, path: str, authority: Path) -> int:
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
    try:
        connection.request("POST", path, b"", {"Content-Type": "application/x-protobuf"})
        return connection.getresponse().status
    finally:
        connection.close()


def _only_the_proxies_listen_outside(hosts: Hosts) -> None:
    public = {Site.from_yaml(hosts.config(name)).port for name in ("cloud", "north", "south")}
    mine: set[str] = set()
    for process in hosts.processes.values():
        for pid in descendants(process.pid):
            for entry in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    mine.add(str(entry.readlink()))
                except OSError:
                    continue
    outside, inside = set(), set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                address, _, port = fields[1].rpartition(":")
                (inside if address == "0100007F" else outside).add(int(port, 16))
    assert outside == public
    assert len(inside) >= 9, "three SuperLinks and six SuperNodes"


def _unknown_key_is_refused(hosts: Hosts) -> None:
    stranger = hosts.folder / "stranger"
    shutil.copytree(hosts.keys("cam-1"), stranger)
    (stranger / certificates.NODE_KEY).unlink()
    (stranger / certificates.NODE_PUBLIC).unlink()
    certificates.make_node(stranger)
    content = yaml.safe_load(hosts.config("cam-1").read_text())
    content |= {"keys": "stranger", "state": "state/stranger"}
    path = hosts.folder / "stranger.yaml"
    path.write_text(yaml.safe_dump(content))
    supernode = services(Site.from_yaml(path), path, [])[-1]
    before = hosts.log("north").count("Activated node_id")
    with (hosts.folder / "stranger.log").open("wb") as log:
        process = subprocess.Popen(
            supernode.command,
            env=dict(supernode.environment),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert process.wait(timeout=120) != 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert "activat" in hosts.log("stranger")
    assert hosts.log("north").count("Activated node_id") == before


# --- faults -----------------------------------------------------------------------------------


def test_everything_that_can_fail_fails_and_the_run_ends(
    fleet: Fleet, hosts: Hosts, expected: Embedded
):
    """All in one run, and all come back.

    An edge's role is killed in its search, the other edge's SuperLink while its devices get their
    model, a device in a round, and the cloud while both edges work.
    """
    out = "faults"
    run = hosts.run(out=out)
    wait_for(lambda: hosts.sent(out, "cloud", "north", "BackboneAssignment") > 0, _RUN_S)
    _wait_until_at_work(hosts, "north", 0.2)
    hosts.kill_part("north", "acme_fleet.network.hosts.role")
    edge = hosts.state("north") / "runs" / hosts.run_id(out) / "edges" / "north"
    assert not (edge / "coarse.safetensors").exists(), "it was killed after its search"

    wait_for(lambda: hosts.sent(out, "south", "badge-1", "HeaderAssignment") > 0, _RUN_S)
    hosts.kill_part("south", "flower-superlink")

    wait_for(lambda: hosts.sent(out, "north", "cam-1", "RoundStart") > 0, _RUN_S)
    _wait_until_at_work(hosts, "cam-1", 0.05)
    hosts.down("cam-1", kill=True)
    hosts.up("cam-1")

    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    summary = finish(hosts.run("--resume", out=out), hosts, out, _RUN_S)

    assert "superlink  ended with" in hosts.log("south")
    assert [device.name for device in summary.devices] == [d.name for d in fleet.devices]
    assert all(cluster.lost == {} for cluster in summary.clusters)
    for device in fleet.devices:
        assert hosts.model(out, device.name) == expected.model(device.name), device.name
    found, known = (_stages(at / "events.jsonl") for at in (hosts.folder / out, expected.path))
    assert not known - found
    # Killed between the end of its training and its keeping, the device trains again.
    again = found - known
    assert again.total() <= 1
    assert all(actor == "cam-1" for actor, _ in again)


def _wait_until_at_work(hosts: Hosts, name: str, seconds: float) -> None:
    """Until a host's role, idle now, has used so many seconds of a processor."""
    role = hosts.part(name, "acme_fleet.network.hosts.role")
    before = cpu_s(role)
    wait_for(lambda: cpu_s(role) > before + seconds, _RUN_S, every_s=0.02)


def test_devices_that_fail_are_named_and_the_others_do_as_if_those_were_silent(
    fleet: Fleet, hosts: Hosts, tmp_path: Path
):
    """All in one run.

    Answers that are not numbers, of wrong shape, and no message at all; a device that is gone for
    good; and an edge whose disk is full for a while.
    """
    out, disk = "losses", hosts.state("south")
    hosts.configure("north", grace_s=15)
    damages = {
        "cam-2": {"WeightsUpload": [not_numbers, *[withheld] * 9]},  # before it is killed
        "badge-1": {"DeviceReport": [garbage] * 9},
        "badge-2": {"WeightsUpload": [misshapen]},
    }
    with ExitStack() as meddled:
        done = {
            name: meddled.enter_context(damaged(hosts.state(name) / "role.sock", kinds))
            for name, kinds in damages.items()
        }
        run = hosts.run(out=out)
        wait_for(lambda: hosts.sent(out, "cloud", "north", "BackboneAssignment") > 0, _RUN_S)
        if disk.is_mount():
            _fill(disk / "junk")
        wait_for(lambda: hosts.sent(out, "north", "cam-2", "RoundStart") > 0, _RUN_S)
        time.sleep(5)
        (disk / "junk").unlink(missing_ok=True)
        # Its first answer has come, and was no answer: it is not asked before the next round.
        wait_for(lambda: hosts.sent(out, "north", "cam-1", "WeightsUpdate") > 0, _RUN_S)
        hosts.down("cam-2", kill=True)
        summary = finish(run, hosts, out, _RUN_S)
    hosts.configure("north", grace_s=_GRACE_S)

    # A question that is late is asked again, and the report is damaged each time.
    assert {name: set(kinds) for name, kinds in done.items()} == {
        name: set(kinds) for name, kinds in damages.items()
    }
    north, south = summary.clusters
    lost = {"cam-2": "out of reach", "badge-1": "exceeds the limit of DeviceReport"}
    assert [*north.lost, *south.lost] == list(lost)
    page = (hosts.folder / out / "report.html").read_text()
    for name, reason in lost.items():
        assert reason in (north.lost | south.lost)[name]
        assert name in page
        assert reason in page
    assert (north.missed, south.missed) == ({"cam-2": 2}, {"badge-2": 1})
    told = read_events(hosts.folder / out / "events.jsonl")
    faults = {(e.actor, e.about) for e in told if isinstance(e, FaultEvent)}
    assert faults == {("north", "cam-2"), ("south", "badge-1"), ("south", "badge-2")}
    assert "<b>badge-2</b> missed 1 round" in page

    silent = {
        "cam-2": {"WeightsUpload": 2, "DeviceReport": 1},
        "badge-1": {"DeviceReport": 1},
        "badge-2": {"WeightsUpload": 1},
    }
    without = _without(silent, fleet, tmp_path / "without")
    assert [d.name for d in summary.devices] == ["cam-1", "badge-2"]
    for device in summary.devices:
        assert hosts.model(out, device.name) == without.model(device.name), device.name
    if not disk.is_mount():
        pytest.skip("the full disk was left out: no tmpfs could be mounted")


def _without(silent: dict[str, dict[str, int]], fleet: Fleet, path: Path) -> Embedded:
    """The run in one process in which devices fail so many times where they should answer."""

    class Silent:
        def __init__(self, role: Handler, left: dict[str, int]) -> None:
            self._role, self._left = role, dict(left)

        def handle(self, message: Message) -> Message:
            answer = self._role.handle(message)
            kind = type(answer).__name__
            if self._left.get(kind, 0):
                self._left[kind] -= 1
                raise ProtocolError("no answer")
            return answer

    def connect(_: Fleet, __: World, run: RunDirectory, journal: Journal) -> Any:
        world, edges = load_world(fleet), {}
        for cluster in fleet.clusters:
            roles = {d.name: device_role(fleet, d, world, run, journal) for d in cluster.devices}
            peers = {name: Silent(role, silent.get(name, {})) for name, role in roles.items()}
            link: Link = EmbeddedLink(cluster.name, peers, journal, "device")
            edges[cluster.name] = edge_role(fleet, cluster, world, link, run, journal)
        return nullcontext(EmbeddedLink("cloud", edges, journal, "cloud"))

    return Embedded(path, customize(fleet, path, connect=connect))


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))


def test_superlink_is_told_only_what_changed(fleet: Fleet, hosts: Hosts):
    """Members register once; a key that was replaced takes the old one's place.

    The last test, as the edge whose key it was is shut out.
    """
    site = Site.from_yaml(hosts.config("cloud"))
    superlink = SuperLink(site)
    members = [cluster.name for cluster in fleet.clusters]
    first = superlink.nodes(members)
    superlink.register(members)
    assert superlink.nodes(members) == first
    certificates.make_node(hosts.folder / "new")
    peers = hosts.keys("cloud") / "peers"
    shutil.copy(hosts.folder / "new" / certificates.NODE_PUBLIC, peers / "north.pub")

    def renewed() -> bool:
        """True once the host has let the new key in; in between it knows neither."""
        known = registered(site.nodes_file)
        return "north" in known and known["north"].node != first["north"]

    wait_for(renewed, 60)
    second = superlink.nodes(members)
    assert second["south"] == first["south"]
    assert second["north"] != first["north"]
    hosts.down("cloud")  # as with Ctrl-C
    assert "stopping" in hosts.log("cloud")
