"""``acme up``: what a cloud, edge or device host runs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from acme_fleet.errors import RunError
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.preflight import check_upstream, checked, wait_until_free
from acme_fleet.network.hosts.proxy import proxy_command
from acme_fleet.network.hosts.site import Site
from acme_fleet.network.hosts.superlink import SuperLink, environment, program
from acme_fleet.network.hosts.supervisor import Service, keep_running
from acme_fleet.network.hosts.tunnel import prepare
from acme_fleet.network.hosts.warm import write_stub
from acme_fleet.runs.locks import held


def up(path: Path, role: str, say: Callable[[str], None]) -> None:
    """Run a host's processes in the foreground until they are told to stop.

    Raises:
        FleetError: if the site file, the fleet or the keys are wrong.
        RunError: if a process does not start, or this host is up already.
    """
    site, fleet = checked(path, role)
    with held(site.state, private=True):
        if site.serves:
            wait_until_free(path, site)
        if site.upstream and (silence := check_upstream(path, site)):
            say(f"{site.upstream} does not answer yet ({silence}); it is asked again until it does")
        keep_running(services(site, path, site.members(fleet)), say)


def services(site: Site, path: Path, members: Sequence[str]) -> list[Service]:
    """The services of a host, in the order of their start.

    Args:
        site: the host.
        path: of its site file.
        members: who dials it.

    Raises:
        FleetError: if programs are missing.
    """
    found: list[Service] = []
    if site.serves:
        superlink = SuperLink(site)
        home = environment(site.state / "flower" / "superlink")
        port = _free_port()
        room = [sys.executable, "-m", "acme_fleet.network.hosts.waiting_room"]
        room += [str(site.nodes_file), str(site.bell_socket), str(port)]
        shown = [certificates.CA, certificates.SERVER, certificates.SERVER_KEY]
        shown += [certificates.REVOKED] if site.mutual_tls else []
        found += [
            Service(
                "superlink",
                superlink.command(),
                home,
                ready=lambda: superlink.register(members),
                watched=lambda: sorted((site.keys / certificates.PEERS).glob("*")),
                changed=lambda: superlink.register(members),
            ),
            Service("waiting", room, home),
            Service(
                "proxy",
                proxy_command(site, port),
                home,
                ready=lambda: _answers(site),
                watched=lambda: [site.keys / name for name in shown],
            ),
        ]
    if site.upstream:
        plain = environment(site.state / "flower" / "role")
        command = [sys.executable, "-m", "acme_fleet.network.hosts.role", str(path.resolve())]
        home = environment(site.state / "flower" / "supernode")
        write_stub(site.state / "bin", site.apps_socket, program("flwr-clientapp"))
        home["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.25"  # not the usual second
        home["PATH"] = f"{site.state / 'bin'}{os.pathsep}{home['PATH']}"
        warm = [sys.executable, "-m", "acme_fleet.network.hosts.warm", str(site.apps_socket)]
        found += [Service(site.role, command, plain), Service("apps", warm, home)]
        above, authority = site.upstream, site.keys / certificates.CA
        if site.mutual_tls:
            folder, port = site.state / "tunnel", str(_free_port())
            prepare(site.keys, folder)
            tunnel = [sys.executable, "-m", "acme_fleet.network.hosts.tunnel"]
            tunnel += [port, above, str(site.keys), str(folder)]
            found.append(Service("tunnel", tunnel, plain))
            above, authority = f"127.0.0.1:{port}", folder / certificates.SERVER
        found.append(Service("supernode", supernode_command(site, above, authority), home))
    return found


def supernode_command(site: Site, above: str, authority: Path) -> list[str]:
    """The command that dials the server above; its own interface is on the loopback interface.

    Args:
        site: the host.
        above: ``host:port``, of the server or of the way there.
        authority: the certificate that vouches for it.
    """
    return [
        program("flower-supernode"),
        *("--superlink", above),
        *("--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(site.keys / certificates.NODE_KEY)),
        *("--host", "127.0.0.1"),
        *("--port", str(_free_port())),
        *("--node-config", f'socket="{site.role_socket}"'),
    ]


def _answers(site: Site) -> None:
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    end = anywhere.get(site.address, site.address), site.port
    try:
        socket.create_connection(end, timeout=2).close()
    except OSError as error:
        raise RunError(f"nothing answers at {end[0]}, port {end[1]}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
