"""The whole chain on one machine: TLS, registered keys, the proxy, two edges with two devices."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import Hosts, descendants, hosts_up, wait_for
from tiny_fleet import tiny

from acme_fleet.deploy import keys
from acme_fleet.deploy.site import Site
from acme_fleet.deploy.superlink import SuperLink
from acme_fleet.deploy.up import services
from acme_fleet.journal import read_events
from acme_fleet.report.summary import Summary

_RUN_S = 420


# They hold a latency that was measured, whose number of digits varies.
_MEASURED = {"DeviceReport": 32, "ClusterReport": 64}


def _messages(path: Path) -> Counter[tuple[str, str, str, int]]:
    """Messages with their exact sizes, but for those that hold a measured number."""
    events = [event for event in read_events(path) if "bytes" in event]
    return Counter(
        (e["from"], e["to"], e["type"], 0 if e["type"] in _MEASURED else e["bytes"]) for e in events
    )


def _measured(path: Path) -> dict[tuple[str, str], int]:
    events = [event for event in read_events(path) if event.get("type") in _MEASURED]
    return {(e["from"], e["type"]): e["bytes"] for e in events}


def _stages(path: Path) -> Counter[tuple[str, str]]:
    return Counter((e["actor"], e["stage"]) for e in read_events(path) if "stage" in e)


def _model(hosts: Hosts, device: str) -> bytes:
    (path,) = hosts.state(device).glob(f"runs/*/devices/{device}/model.safetensors")
    return path.read_bytes()


def _finish(process: subprocess.Popen[bytes], hosts: Hosts, out: str = "run") -> Summary:
    try:
        code = process.wait(timeout=_RUN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert code == 0, hosts.log(out)
    return Summary.read(hosts.folder / out / "summary.json")


# --- a run as it should be, and who else can get in ---------------------------------------------


def test_the_same_models_bytes_and_report_as_embedded(short_path: Path, embedded: Any):
    fleet = tiny()
    expected, summary = embedded(fleet)
    with hosts_up(Hosts(short_path, fleet, {"grace_s": 60})) as hosts:
        found = _finish(hosts.run(), hosts)
        for device in fleet.devices:
            model = expected / "devices" / device.name / "model.safetensors"
            assert _model(hosts, device.name) == model.read_bytes(), device.name
        run = hosts.folder / "run"
        assert _messages(run / "events.jsonl") == _messages(expected / "events.jsonl")
        assert _stages(run / "events.jsonl") == _stages(expected / "events.jsonl")
        sizes = _measured(run / "events.jsonl")
        for (sender, kind), size in _measured(expected / "events.jsonl").items():
            assert abs(sizes[sender, kind] - size) <= _MEASURED[kind]
        traffic = summary.traffic.model_dump()
        assert found.traffic.model_dump() == pytest.approx(traffic, abs=6 * 64, rel=0.01)
        unlike = {"latency_s": 0.0}
        assert [d.model_copy(update=unlike) for d in found.devices] == [
            d.model_copy(update=unlike) for d in summary.devices
        ]
        assert all(cluster.lost == {} for cluster in found.clusters)
        assert "badge-2" in (run / "report.html").read_text()
        assert not (run / "devices").exists(), "models stay on the devices"
        _only_the_fleet_path_is_reachable(hosts)
        _only_the_proxies_listen_outside(hosts)
        _unknown_key_is_refused(hosts)


def _only_the_fleet_path_is_reachable(hosts: Hosts) -> None:
    """A node's path reaches the SuperLink, which asks for its key; all others end at the proxy."""
    for server in ("cloud", "north"):
        site = Site.from_yaml(hosts.config(server))
        paths = {
            "/v1/fleet/pull-messages": None,
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
    (stranger / keys.NODE_KEY).unlink()
    (stranger / keys.NODE_PUBLIC).unlink()
    keys.make_node(stranger)
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


def _sent(hosts: Hosts, server: str, to: str, kind: str) -> int:
    """Messages that a server's journal tells of."""
    paths = (
        [hosts.folder / "run" / "events.jsonl"]
        if server == "cloud"
        else hosts.state(server).glob("runs/*/events.jsonl")
    )
    events = [event for path in paths for event in read_events(path)]
    return sum(event.get("to") == to and event.get("type") == kind for event in events)


def test_everything_that_can_fail_fails_and_the_run_ends(short_path: Path, embedded: Any):
    """In one run: an edge's role is killed in its search, the cloud in the edges' work, a device

    in a round, which comes back, another for good, and the other edge's SuperLink.
    """
    fleet = tiny(steps=150)
    expected, _ = embedded(fleet)
    hosts = Hosts(short_path, fleet, {"grace_s": 240})
    with hosts_up(hosts):
        run = hosts.run()
        wait_for(lambda: _sent(hosts, "cloud", "north", "BackboneAssignment") > 0, _RUN_S)
        time.sleep(6)
        hosts.kill_part("north", "acme_fleet.deploy.role")

        wait_for(lambda: _sent(hosts, "south", "badge-1", "HeaderAssignment") > 0, _RUN_S)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        hosts.kill_part("south", "flower-superlink")
        run = hosts.run("--resume")

        wait_for(lambda: _sent(hosts, "north", "cam-1", "RoundStart") > 0, _RUN_S)
        hosts.down("cam-1", kill=True)
        wait_for(lambda: "superlink" in hosts.log("south"), _RUN_S)
        hosts.up("cam-1")
        summary = _finish(run, hosts)

        assert [device.name for device in summary.devices] == [d.name for d in fleet.devices]
        assert all(cluster.lost == {} for cluster in summary.clusters)
        for device in fleet.devices:
            model = expected / "devices" / device.name / "model.safetensors"
            assert _model(hosts, device.name) == model.read_bytes(), device.name
        assert _stages(hosts.folder / "run" / "events.jsonl") == _stages(expected / "events.jsonl")


def test_device_that_stays_away_is_named_and_a_full_disk_is_waited_for(short_path: Path):
    fleet = tiny()
    hosts = Hosts(short_path, fleet, {"grace_s": 200})
    hosts.set_up()
    north = yaml.safe_load(hosts.config("north").read_text())
    hosts.config("north").write_text(yaml.safe_dump(north | {"grace_s": 20}))
    disk = hosts.state("south")
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "acme-test", str(disk)], capture_output=True
    )
    try:
        with hosts_up(hosts, ready=True):
            run = hosts.run()
            wait_for(lambda: _sent(hosts, "cloud", "north", "BackboneAssignment") > 0, _RUN_S)
            if mounted.returncode == 0:
                _fill(disk / "junk")
            wait_for(lambda: _sent(hosts, "north", "cam-2", "RoundStart") > 0, _RUN_S)
            hosts.down("cam-2", kill=True)
            time.sleep(5)
            (disk / "junk").unlink(missing_ok=True)
            summary = _finish(run, hosts)
            assert [d.name for d in summary.devices] == ["cam-1", "badge-1", "badge-2"]
            assert list(summary.clusters[0].lost) == ["cam-2"]
            assert "out of reach" in summary.clusters[0].lost["cam-2"]
            assert "cam-2" in (hosts.folder / "run" / "report.html").read_text()
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    if mounted.returncode != 0:
        pytest.skip(f"the full disk was left out: {mounted.stderr.decode().strip()}")


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**16))
                file.flush()
        except OSError:
            return


def test_superlink_is_told_only_what_changed(short_path: Path):
    """Members register once; a key that was replaced takes the old one's place."""
    fleet = tiny()
    hosts = Hosts(short_path, fleet)
    hosts.set_up()
    hosts.up("cloud")
    try:
        hosts.wait_up("cloud")
        superlink = SuperLink(Site.from_yaml(hosts.config("cloud")))
        members = [cluster.name for cluster in fleet.clusters]
        first = superlink.nodes(members)
        superlink.register(members)
        assert superlink.nodes(members) == first
        shutil.rmtree(hosts.keys("north"))
        keys.make_node(hosts.keys("north"))
        peers = hosts.keys("cloud") / "peers"
        shutil.copy(hosts.keys("north") / keys.NODE_PUBLIC, peers / "north.pub")
        superlink.register(members)
        second = superlink.nodes(members)
        assert second["south"] == first["south"]
        assert second["north"] != first["north"]
    finally:
        hosts.down("cloud")
