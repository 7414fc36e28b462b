"""Many hosts over Flower, on this machine: ``python examples/two_edges.py``.

The fleet of ``bert.yaml``: a cloud, two edges and two devices of each, every one a host with keys,
a disk and processes of its own, as on real sites (docs/network.md). Needs an environment with
``pip install -c constraints-flower.txt -e runtime -e '.[flower]'``, nginx, and
``python examples/made.py``.
"""

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import sleep

import yaml
from made import MADE

ACME = [sys.executable, "-m", "acme_fleet"]
OUT = Path("runs/two-edges").resolve()
HERE = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=9443, help="the first of six")
    port = parser.parse_args().port
    if find_spec("flwr") is None or shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
        sys.exit("needs Flower and nginx: see the first lines of this file")

    fleet = yaml.safe_load(Path(__file__).with_name("bert.yaml").read_text())
    fleet["data"]["train"] = str(MADE / "sentences.jsonl")
    fleet["reference"]["checkpoint"] = str(MADE / "bert")
    for cluster in fleet["clusters"]:
        cluster["devices"] = cluster["devices"][:2]
    OUT.mkdir(parents=True)
    (OUT / "fleet.yaml").write_text(yaml.safe_dump(fleet))

    members = {c["name"]: [d["name"] for d in c["devices"]] for c in fleet["clusters"]}
    servers = {"cloud": [*members], **members}
    acme("keys", "init", *(f"--host={name}={HERE}" for name in servers))
    hosts = {"cloud": site("cloud", "cloud", port=port, local_port=port + 1)}
    for number, (server, below) in enumerate(servers.items()):
        for name in below:
            acme("keys", "device", name)  # its public key goes to the server that it dials
            (OUT / "keys" / server / "peers").mkdir(exist_ok=True)
            shutil.copy(OUT / "keys" / name / "node.pub", OUT / f"keys/{server}/peers/{name}.pub")
            upstream = {"upstream": f"{HERE}:{port + 2 * number}"}
            if name in servers:
                first = port + 2 * [*servers].index(name)
                hosts[name] = site("edge", name, port=first, local_port=first + 1, **upstream)
            else:
                hosts[name] = site("device", name, **upstream)

    up = {name: start(name, role) for name, role in hosts.items()}
    try:
        while not all("\nup\n" in (OUT / f"{name}.log").read_text() for name in up):
            if ended := [name for name, process in up.items() if process.poll() is not None]:
                sys.exit(f"{', '.join(ended)} did not start: see the logs in {OUT}")
            sleep(0.5)
        acme("run", "fleet.yaml", "--engine", "flower", "--config", "cloud.yaml", "--out", "run")
    finally:
        for process in up.values():
            process.terminate()
        for process in up.values():
            process.wait()
    [model] = OUT.glob("state/kitchen/runs/*/devices/kitchen")  # no other host has it
    acme("predict", str(model), "--text", "will it rain tomorrow")


def site(role: str, name: str, **entries: str | int) -> str:
    """Write a host's site file, and give it the authority's certificate; returns its role."""
    own = {"role": role, "name": name, "fleet": "fleet.yaml", **entries}
    own |= {"state": f"state/{name}", "keys": f"keys/{name}"}
    (OUT / f"{name}.yaml").write_text(yaml.safe_dump(own))
    (OUT / "keys" / name).mkdir(exist_ok=True)
    shutil.copy(OUT / "keys/ca.crt", OUT / "keys" / name)
    return role


def start(name: str, role: str) -> "subprocess.Popen[bytes]":
    with (OUT / f"{name}.log").open("wb") as log:
        command = [*ACME, "up", role, "--config", f"{name}.yaml"]
        return subprocess.Popen(command, cwd=OUT, stdout=log, stderr=log)


def acme(*arguments: str) -> None:
    subprocess.run([*ACME, *arguments], cwd=OUT, check=True)


if __name__ == "__main__":
    main()
