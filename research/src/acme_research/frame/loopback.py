"""A fleet of many hosts on one machine: every host has its own processes, keys and disk."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from acme_fleet.config.fleet import Fleet
from acme_fleet.runs.directory import Identity, RunDirectory
from acme_fleet.runs.events import messages_of
from acme_fleet.runs.journal import read_events
from acme_fleet.runs.sealed import read_sealed_json
from acme_fleet.runs.summary import Summary

ACME = [str(Path(sys.executable).with_name("acme"))]
STARTED = "--- started\n"
_FOR_ALL = ("mutual_tls",)


@dataclass
class Hosts:
    """The hosts of a fleet, each ``acme up`` in a process of its own.

    Attributes:
        folder: everything of all hosts; a short path, for their sockets.
        fleet: as in the fleet file that all hosts have.
        site: entries for every site file, e.g. ``grace_s``.
        wrap: what to put before a host's command, e.g. ``ip netns exec``.
        address: where a server is reached.
        dial: the port that a host dials, by its name and its server's port.
    """

    folder: Path
    fleet: Fleet
    site: Mapping[str, Any] = field(default_factory=dict)
    wrap: Callable[[str], list[str]] = lambda _: []
    address: Callable[[str], str] = lambda _: "127.0.0.1"
    dial: Callable[[str, int], int] = lambda _, port: port
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def set_up(self) -> None:
        """Write the fleet file, the keys and the site files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "fleet.yaml").write_text(self.fleet.to_yaml())
        servers = {"cloud": [c.name for c in self.fleet.clusters]}
        servers |= {c.name: [d.name for d in c.devices] for c in self.fleet.clusters}
        hosts = [f"--host={name}={self.address(name)}" for name in servers]
        self._acme("keys", "init", *hosts)
        ports = free_ports(2 * len(servers))
        upstream: dict[str, str] = {}
        for server, members in servers.items():
            port, local = ports.pop(), ports.pop()
            extra = {"port": port, "local_port": local, "address": "0.0.0.0"}
            self._site(server, upstream.get(server), extra)
            for name in members:
                upstream[name] = f"{self.address(server)}:{self.dial(name, port)}"
                self._acme("keys", "device", name)
                self._acme("keys", "certify", name)
                public = self.keys(name) / "node.pub"
                peers = self.keys(server) / "peers"
                peers.mkdir(exist_ok=True)
                (peers / f"{name}.pub").write_bytes(public.read_bytes())
        for device in self.fleet.devices:
            self._site(device.name, upstream[device.name], {})
        for name in self.names:
            for file in ("ca.crt", "revoked.crl"):
                (self.keys(name) / file).write_bytes((self.folder / "keys" / file).read_bytes())

    @property
    def names(self) -> list[str]:
        edges = [cluster.name for cluster in self.fleet.clusters]
        return ["cloud", *edges, *(device.name for device in self.fleet.devices)]

    def role(self, name: str) -> str:
        edges = [cluster.name for cluster in self.fleet.clusters]
        return "cloud" if name == "cloud" else "edge" if name in edges else "device"

    def keys(self, name: str) -> Path:
        return self.folder / "keys" / name

    def state(self, name: str) -> Path:
        return self.folder / "state" / name

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def up(self, *names: str) -> None:
        """Start hosts."""
        for name in names:
            command = [*ACME, "up", self.role(name), "--config", str(self.config(name))]
            with (self.folder / f"{name}.log").open("a") as log:
                log.write(STARTED)
            self.processes[name] = self.popen(name, f"{name}.log", command)

    def wait_up(self, *names: str, timeout_s: float = 120) -> None:
        """Until those started last say that they are up."""

        def is_up(name: str) -> bool:
            return "\nup\n" in self.log(name).rpartition(STARTED)[2]

        wait_for(lambda: all(is_up(name) for name in names), timeout_s)

    def configure(self, name: str, **entries: Any) -> None:
        """Start a host again with entries of its site file changed."""
        content = yaml.safe_load(self.config(name).read_text())
        self.config(name).write_text(yaml.safe_dump(content | entries))
        self.down(name, kill=True)
        self.up(name)
        self.wait_up(name)

    def run_id(self, out: str) -> str:
        """The run's identity on all hosts; ``-`` before it has begun."""
        path = RunDirectory(self.folder / out).identity
        return read_sealed_json(path, Identity).run if path.exists() else "-"

    def sent(self, out: str, server: str, to: str, kind: str) -> int:
        """Messages of a run that a server's journal tells of."""
        own = self.state(server) / "runs" / self.run_id(out)
        events = read_events((self.folder / out if server == "cloud" else own) / "events.jsonl")
        return sum((m.receiver, m.type) == (to, kind) for m in messages_of(events))

    def model(self, out: str, device: str) -> bytes:
        """The model that a run left on a device."""
        folder = self.state(device) / "runs" / self.run_id(out) / "devices" / device
        return (folder / "model.safetensors").read_bytes()

    def run(self, *extra: str, out: str = "run") -> subprocess.Popen[bytes]:
        """``acme run --engine flower`` at the cloud; the process."""
        fleet, config = str(self.folder / "fleet.yaml"), str(self.config("cloud"))
        flower = ["--engine", "flower", "--config", config, "--out", str(self.folder / out)]
        return self.popen("cloud", f"{out}.log", [*ACME, "run", fleet, *flower, *extra])

    def popen(self, name: str, log: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [*self.wrap(name), *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
                start_new_session=True,
            )

    def down(self, *names: str, kill: bool = False) -> None:
        """Stop hosts as with Ctrl-C; or kill them with all that they started, as a power cut."""
        stopped = [self.processes.pop(name) for name in names]
        for process in stopped:
            for each in descendants(process.pid) if kill else [process.pid]:
                _signal(each, signal.SIGKILL if kill else signal.SIGINT)
        for process in stopped:
            process.wait(timeout=90)

    def part(self, name: str, command: str) -> int:
        """The process of a host whose command line holds a word."""
        found = [p for p in descendants(self.processes[name].pid) if command in command_line(p)]
        assert found, f"{name} has no process with {command}"
        return found[0]

    def kill_part(self, name: str, command: str) -> None:
        _signal(self.part(name, command), signal.SIGKILL)

    def _site(self, name: str, upstream: str | None, extra: dict[str, Any]) -> None:
        content: dict[str, Any] = {"role": self.role(name), "name": name, "fleet": "fleet.yaml"}
        content |= {"state": f"state/{name}", "keys": f"keys/{name}", **extra}
        content |= {"upstream": upstream} if upstream else {}
        server = self.role(name) != "device"
        content |= {k: v for k, v in self.site.items() if server or k in _FOR_ALL}
        self.config(name).write_text(yaml.safe_dump(content))

    def _acme(self, *arguments: str) -> None:
        command = [*ACME, *arguments, "--keys", str(self.folder / "keys")]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def hosts_up(hosts: Hosts, *, ready: bool = False, timeout_s: float = 120) -> Iterator[Hosts]:
    """All hosts set up (unless they are) and started; killed at the end, which takes no time."""
    if not ready:
        hosts.set_up()
    try:
        hosts.up(*hosts.names)
        hosts.wait_up(*hosts.names, timeout_s=timeout_s)
        yield hosts
    finally:
        hosts.down(*hosts.processes, kill=True)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, for as long as it is needed."""
    folder = Path(tempfile.mkdtemp(prefix="acme-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.2) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every_s)


def finish(process: subprocess.Popen[bytes], hosts: Hosts, out: str, timeout_s: float) -> Summary:
    """Wait for a run, not for ever; its summary."""
    try:
        code = process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert code == 0, hosts.log(out)
    return Summary.read(hosts.folder / out / "summary.json")


def descendants(pid: int) -> list[int]:
    """A process and all that it started, the deepest last."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(path.name)):
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds of a process, and of those that it waited for; none if it has ended."""
    return sum(map(int, _stat(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def command_line(pid: int) -> str:
    return of_process(pid, "cmdline").replace("\0", " ")


def of_process(pid: int, file: str) -> str:
    """A file of a process in ``/proc``; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    return of_process(pid, "stat").rpartition(")")[2].split()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        probes = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
