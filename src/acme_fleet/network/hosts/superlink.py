"""Flower's commands as this project needs them: no telemetry, no update check, nothing fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import acme_fleet
from acme_fleet.errors import FleetError, RunError
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.site import Site
from acme_fleet.outside import listed
from acme_fleet.runs.sealed import STRICT, read_sealed_json, write_sealed_json

APP = Path(acme_fleet.__file__).parent / "network" / "flower" / "app"
_COMMAND_S = 60.0


def program(name: str) -> str:
    """One of Flower's commands, from the environment that this runs in.

    Raises:
        FleetError: if Flower is not installed.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise FleetError(f"{path} does not exist; install Flower: pip install 'acme-fleet[flower]'")
    return str(path)


def environment(home: Path) -> dict[str, str]:
    """Environment of Flower's processes: a home of their own, no telemetry."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


@dataclass(frozen=True)
class Node:
    """A member of this host's fleet as it was registered: its number, and its public key."""

    __pydantic_config__ = STRICT

    node: int
    key: str


def registered(file: Path) -> dict[str, Node]:
    """Those who were registered, by name; see :attr:`Site.nodes_file`."""
    return read_sealed_json(file, dict[str, Node]) if file.exists() else {}


class SuperLink:
    """The SuperLink of one host, reached over its loopback interface."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._home = site.state / "flower" / "cli"

    def command(self) -> list[str]:
        """The command that starts it: on loopback, with TLS, for registered nodes only."""
        folder = self._site.keys
        return [
            program("flower-superlink"),
            *("--host", "127.0.0.1"),
            *("--port", str(self._site.local_port)),
            *("--ssl-certfile", str(folder / certificates.SERVER)),
            *("--ssl-keyfile", str(folder / certificates.SERVER_KEY)),
            *("--ssl-ca-certfile", str(folder / certificates.CA)),
            *("--database", str(self._site.state / "superlink.db")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]

    def register(self, members: Sequence[str]) -> None:
        """Let in those whose keys are here, nobody else, and write down who is which node.

        Raises:
            RunError: if the SuperLink does not answer.
            FleetError: if a key is missing.
        """
        nodes = self._known()
        paths = certificates.public_keys(self._site.keys, members)
        texts = {name: path.read_text() for name, path in paths.items()}
        for name, entry in list(nodes.items()):
            if entry["key"] != texts.get(name):
                self._flwr("supernode", "unregister", str(entry["node"]), "local")
                del nodes[name]
                self._write_down(nodes)
        for name in paths:
            if name not in nodes:
                told = self._flwr("supernode", "register", str(paths[name]), "local")
                nodes[name] = {"node": int(told["node-id"]), "key": texts[name]}
                self._write_down(nodes)

    def nodes(self, members: Sequence[str]) -> Mapping[str, int | None]:
        """The members' nodes as they were registered; None for one whose key was revoked.

        Raises:
            RunError: if they were not.
        """
        known = self._known()
        out = {name for name in members if certificates.shut_out(self._site.keys, name).exists()}
        if missing := [name for name in members if name not in known.keys() | out]:
            raise RunError(
                f"{self._site.nodes_file} has no node of {listed(missing, 10)}; is `acme up "
                f"{self._site.role}` running on this host, with the fleet file as it is now?"
            )
        return {name: None if name in out else int(known[name]["node"]) for name in members}

    def start_relay(self) -> None:
        """Submit the relay for this host's role.

        Raises:
            RunError: if the SuperLink does not take it.
        """
        socket = f'socket="{self._site.relay_socket}"'
        self._flwr("run", str(APP), "local", "--run-config", socket)

    def _write_down(self, nodes: Mapping[str, Any]) -> None:
        write_sealed_json(self._site.nodes_file, nodes)

    def _known(self) -> dict[str, dict[str, Any]]:
        database = self._site.state / "superlink.db"
        nodes = registered(self._site.nodes_file) if database.exists() else {}
        return {name: asdict(node) for name, node in nodes.items()}

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a command of Flower's command line and read what it says."""
        self._write_configuration()
        try:
            told = subprocess.run(
                [program("flwr"), *arguments, "--format", "json"],
                env=environment(self._home),
                capture_output=True,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
            content = json.loads(told.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise RunError(f"the SuperLink on this host does not answer: {error}") from error
        if not content.get("success"):
            raise RunError(
                f"flwr {' '.join(arguments[:2])}: {content.get('error-message', content)}"
            )
        return content

    def _write_configuration(self) -> None:
        environment(self._home)
        text = (
            '[superlink]\ndefault = "local"\n\n[superlink.local]\n'
            f'address = "127.0.0.1:{self._site.local_port}"\n'
            f"root-certificates = {json.dumps(str(self._site.keys / certificates.CA))}\n"
        )
        path = self._home / "config.toml"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
