"""Hosts that share no network: the devices sit behind NAT, lines are slow and lose packets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acme_fleet.config.fleet import Fleet
from acme_fleet.pipeline import customize
from acme_research.frame.loopback import Hosts, hosts_up, short_folder
from tiny_fleet import tiny

# Namespace of each host, and its line to the middle: address, gateway.
_LINES = {
    "cloud": ("10.71.1.2", "10.71.1.1"),
    "north": ("10.71.2.2", "10.71.2.1"),
    "router": ("10.71.3.2", "10.71.3.1"),
}
_INSIDE = {"cam-1": "192.168.71.11", "cam-2": "192.168.71.12"}
_ROUTER_INSIDE = "192.168.71.1"
_NETEM = ["delay", "30ms", "5ms", "loss", "1%"]
_PREFIX = "acme-t-"


def _ip(*arguments: str, within: str | None = None) -> None:
    space = ["ip", "-n", _PREFIX + within] if within else ["ip"]
    subprocess.run([*space, *arguments], check=True, capture_output=True, text=True)


def _inside(space: str, *command: str) -> subprocess.CompletedProcess[str]:
    wrapped = ["ip", "netns", "exec", _PREFIX + space, *command]
    return subprocess.run(wrapped, check=True, capture_output=True, text=True)


def _line(left: str, right: str, ends: tuple[str, str]) -> None:
    """A cable between two namespaces, slow and lossy in both directions."""
    names = (f"to-{right}"[:15], f"to-{left}"[:15])
    _ip("link", "add", names[0], "netns", _PREFIX + left, "type", "veth",
        "peer", "name", names[1], "netns", _PREFIX + right)  # fmt: skip
    for space, name, address in ((left, names[0], ends[0]), (right, names[1], ends[1])):
        _ip("addr", "add", f"{address}/24", "dev", name, within=space)
        _ip("link", "set", name, "up", within=space)


def _slow_down() -> None:
    """Delay and loss on every line, in both directions; raises if the kernel has no netem."""
    for space in _LINES:
        for here, there in ((space, "middle"), ("middle", space)):
            device = f"to-{there}"
            _inside(here, "tc", "qdisc", "add", "dev", device, "root", "netem", *_NETEM)


def _lose() -> None:
    """Loss alone, which every kernel with nft can do: one packet in a hundred."""
    _inside("middle", "nft", "add table ip lossy")
    chain = "add chain ip lossy pass { type filter hook forward priority 0 ; }"
    _inside("middle", "nft", chain)
    _inside("middle", "nft", "add rule ip lossy pass numgen random mod 100 == 0 drop")


def _build() -> None:
    for space in ("middle", *_LINES, *_INSIDE):
        _ip("netns", "add", _PREFIX + space)
        _ip("link", "set", "lo", "up", within=space)
    for space, (address, gateway) in _LINES.items():
        _line(space, "middle", (address, gateway))
        _ip("route", "add", "default", "via", gateway, within=space)
    # Behind the router: one network for all devices.
    _ip("link", "add", "home", "type", "bridge", within="router")
    _ip("addr", "add", f"{_ROUTER_INSIDE}/24", "dev", "home", within="router")
    _ip("link", "set", "home", "up", within="router")
    for device, address in _INSIDE.items():
        _ip("link", "add", "eth0", "netns", _PREFIX + device, "type", "veth",
            "peer", "name", f"to-{device}", "netns", _PREFIX + "router")  # fmt: skip
        _ip("addr", "add", f"{address}/24", "dev", "eth0", within=device)
        _ip("link", "set", "eth0", "up", within=device)
        _ip("link", "set", f"to-{device}", "master", "home", "up", within="router")
        _ip("route", "add", "default", "via", _ROUTER_INSIDE, within=device)
    for space in ("middle", "router"):
        _inside(space, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _inside("router", "nft", "add table ip nat")
    _inside("router", "nft", "add chain ip nat out { type nat hook postrouting priority 100 ; }")
    _inside("router", "nft", "add rule ip nat out oifname to-middle masquerade")


def _tear_down() -> None:
    for space in ("middle", *_LINES, *_INSIDE):
        subprocess.run(["ip", "netns", "del", _PREFIX + space], capture_output=True, check=False)


@pytest.fixture
def lines() -> Iterator[str]:
    """The network; skips with the reason where this is not permitted.

    Yields what it lacks, and why.
    """
    lacks = ""
    _tear_down()
    try:
        _build()
    except (OSError, subprocess.CalledProcessError) as error:
        _tear_down()
        told = getattr(error, "stderr", None) or error
        pytest.skip(f"network namespaces and NAT cannot be used here: {str(told).strip()}")
    try:
        _slow_down()
    except (OSError, subprocess.CalledProcessError) as error:
        lacks = f"delay by tc netem was left out: {getattr(error, 'stderr', error)}"
        _lose()
    yield lacks
    _tear_down()


def _reaches(space: str, address: str) -> bool:
    """True if packets come back: a refusal is an answer too."""
    code = (
        "import socket; s = socket.socket(); s.settimeout(3)\n"
        f"try: s.connect(({address!r}, 9))\n"
        "except ConnectionRefusedError: print('there')\n"
        "except OSError: pass"
    )
    return "there" in _inside(space, sys.executable, "-c", code).stdout


def test_devices_behind_nat_dial_out(lines: str, tmp_path: Path):
    whole = tiny(**{"reference.training.epochs": 3, "personalization.rounds": 1})
    fleet = Fleet.model_validate(whole.model_dump() | {"clusters": [whole.clusters[0]]})
    customize(fleet, tmp_path / "run")
    for device, address in _INSIDE.items():  # the edge could not reach a device if it wanted to
        assert not _reaches("north", address), device
    assert _reaches("cam-1", _LINES["north"][0])
    assert _reaches("north", _LINES["cloud"][0])
    with short_folder() as folder:
        hosts = Hosts(
            folder,
            fleet,
            {"grace_s": 60},
            wrap=lambda name: ["ip", "netns", "exec", _PREFIX + name],
            address=lambda name: _LINES[name][0],
        )
        with hosts_up(hosts):
            assert hosts.run().wait(timeout=420) == 0, hosts.log("run")
            for device in fleet.devices:
                model = tmp_path / "run" / "devices" / device.name / "model.safetensors"
                assert hosts.model("run", device.name) == model.read_bytes()
    if lacks := lines:
        pytest.skip(f"passed with NAT and 1 % loss; {lacks}")
