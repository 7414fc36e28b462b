"""Run after run on hosts that stay up, while lines and processes fail: nothing is lost or grows.

``make test-soak`` takes half an hour; SECONDS=120 tries it.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from bad_fleet import RUN_S, Lines, bad_fleet, over_lines

from acme_fleet.pipeline import customize
from acme_research.frame.loopback import Hosts, descendants, finish, wait_for

_SECONDS = float(os.environ.get("ACME_SOAK_S", "1800"))
_GRACE_S = 240
_SETTLED = 1  # runs until a host has loaded all that it will
_GROWTH_MB, _MORE_FILES = 60.0, 20

_LINES = ("delayed", "cut", "slow", "silent")
_PARTS = {
    "role": "acme_fleet.network.hosts.role",
    "supernode": "flower-supernode",
    "tunnel": "acme_fleet.network.hosts.tunnel",
}


def _spoil(draw: random.Random, lines: Lines, done: Counter[str]) -> None:
    """A fault, or none, for each line."""
    for line in lines.values():
        line.mend()
        fault = draw.choice((*_LINES, "none"))
        done[fault] += 1
        if fault == "delayed":
            line.delay_s = 0.3
        elif fault == "cut":
            line.cut_after, line.cut_share = 100_000, 0.1
        elif fault == "slow":
            line.bytes_up = line.bytes_down = 60_000
        elif fault == "silent":
            line.silent = True
        if fault != "none":
            line.cut_all()  # what is open now was not spoilt


def _held(hosts: Hosts, name: str) -> tuple[float, int]:
    """Proportional memory of a host's processes in MB, and their open files."""
    memory, files = 0.0, 0
    for pid in descendants(hosts.processes[name].pid):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            continue
        memory += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
    return memory, files


@pytest.mark.slow
@pytest.mark.timeout(_SECONDS + 4 * RUN_S)  # the last run, and the hosts' start
def test_nothing_is_lost_and_nothing_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fleet, draw, done = bad_fleet(), random.Random(0), Counter[str]()
    customize(fleet, tmp_path / "run")
    models = {
        device.name: (tmp_path / "run" / "devices" / device.name / "model.safetensors").read_bytes()
        for device in fleet.devices
    }
    held: list[dict[str, tuple[float, int]]] = []
    with over_lines(fleet, _GRACE_S) as (hosts, lines):
        begun = time.monotonic()
        while len(held) <= _SETTLED + 1 or time.monotonic() - begun < _SECONDS:
            out = f"run-{len(held)}"
            run = hosts.run(out=out)
            wait_for(lambda out=out: hosts.sent(out, "north", "cam-1", "ProfileRequest") > 0, RUN_S)
            _spoil(draw, lines, done)
            part = draw.choice(list(_PARTS))
            hosts.kill_part(draw.choice(["cam-1", "cam-2", "cam-3", "north"]), _PARTS[part])
            done[part] += 1
            time.sleep(draw.uniform(0, 20))
            for line in lines.values():
                if line.silent:
                    line.cut_all()
                    line.silent = False
            summary = finish(run, hosts, out, RUN_S)
            assert summary.clusters[0].lost == {}, out
            for name, model in models.items():
                assert hosts.model(out, name) == model, (out, name)
            held.append({name: _held(hosts, name) for name in hosts.names})
            with capsys.disabled():
                told = ", ".join(f"{n} {m:.0f} MB {f} files" for n, (m, f) in held[-1].items())
                print(f"\n{time.monotonic() - begun:.0f} s, {out}: {told}", end="")  # noqa: T201
        cuts = sum(line.cut for line in lines.values())
    assert cuts > 0
    assert done["role"] + done["supernode"] + done["tunnel"] == len(held)
    assert len(done) > 3, done
    for name, (memory, files) in held[-1].items():
        before, files_before = held[_SETTLED][name]
        assert memory < before + _GROWTH_MB, (name, held)
        assert files < files_before + _MORE_FILES, (name, held)
