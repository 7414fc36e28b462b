"""A fleet of many hosts after its run: the update is that of one machine, bit for bit.

One device leaves, one joins with data of its own, and so does an edge server; one stays.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from acme_fleet.config.fleet import Fleet
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from acme_fleet.updates.update import update
from acme_research.frame.loopback import ACME, Hosts, finish, hosts_up, short_folder, wait_for
from tiny_fleet import SHORT, tiny

_RUN_S = 300
_OLD, _NEW = "run", "run-2"
_SHORT = SHORT | {"personalization.rounds": 2, "personalization.mix": "both"}


def _fleet(edit: Any) -> Fleet:
    content = tiny(**_SHORT).model_dump(mode="json")
    edit(content, content["clusters"])
    return Fleet.parse(content)


def _before(_: dict[str, Any], clusters: list[dict[str, Any]]) -> None:
    del clusters[1]


def _all(own: Path, content: dict[str, Any], clusters: list[dict[str, Any]]) -> None:
    """All that ever are: north with the device that joins, and south."""
    north, south = clusters
    north["devices"].append({"name": "cam-9", "storage": "80 kB", "data": str(own)})
    south["devices"] = south["devices"][:1]
    south["data"] = south["devices"][0]["data"] = str(own)
    content["data"]["dealt_to"] = ["cam-1", "cam-2"]


def _after(own: Path, content: dict[str, Any], clusters: list[dict[str, Any]]) -> None:
    _all(own, content, clusters)
    del clusters[0]["devices"][0]


@dataclass
class Fleets:
    """The hosts before and after, in one folder; and the same on one machine."""

    before: Hosts
    after: Hosts
    embedded: Path

    def update(self) -> Any:
        command = [*ACME, "update", str(self.after.folder / _OLD)]
        command += ["--fleet", str(self.after.folder / "fleet.yaml")]
        command += ["--out", str(self.after.folder / _NEW)]
        return self.after.popen("cloud", f"{_NEW}.log", command)

    def refused(self) -> str:
        """The words of an update that must not begin; nothing of it is left."""
        log = self.after.folder / f"{_NEW}.log"
        log.unlink(missing_ok=True)
        assert self.update().wait(timeout=_RUN_S) == 2, log.read_text()
        assert not list(self.after.folder.glob(f"*{_NEW}*/*"))
        return " ".join(log.read_text().split())


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleets]:
    with short_folder() as folder:
        digits = datasets.load_digits()
        own = folder / "own.npz"
        np.savez(own, images=digits.images[:120] / 16, labels=digits.target[:120])
        old = _fleet(_before)
        new = _fleet(lambda *content: _after(own, *content))
        Hosts(folder, _fleet(lambda *content: _all(own, *content))).set_up()
        before = Hosts(folder, old, {"grace_s": 60})
        (folder / "fleet.yaml").write_text(old.to_yaml())
        embedded = tmp_path_factory.mktemp("embedded")
        with hosts_up(before, ready=True):
            finish(before.run(out=_OLD), before, _OLD, _RUN_S)
            customize(old, embedded / _OLD)
            update(embedded / _OLD, new, embedded / _NEW)
            yield Fleets(before, replace(before, fleet=new), embedded)


def _sums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _device(hosts: Hosts, out: str, name: str) -> Path:
    return hosts.state(name) / "runs" / hosts.run_id(out) / "devices" / name


@pytest.mark.timeout(900)
def test_the_update_of_many_hosts_is_that_of_one_machine(fleets: Fleets):
    before, after = fleets.before, fleets.after
    kept = _sums(_device(before, _OLD, "cam-2"))
    (after.folder / "fleet.yaml").write_text(after.fleet.to_yaml())
    late = "cam-2"  # its host goes on with the old fleet file
    before.down(*(name for name in before.names if name != late))
    after.up(*(name for name in after.names if name != late))
    after.wait_up(*(name for name in after.names if name != late))
    told = "nothing was computed, as not all can keep what they have"
    assert f"{told}: {late}: its fleet file or seed differs" in fleets.refused()
    after.down(late)
    after.up(late)
    after.wait_up(late)
    process = fleets.update()
    wait_for(lambda: after.sent(_NEW, "north", "cam-9", "RoundStart") > 0, _RUN_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    summary = finish(after.run("--resume", out=_NEW), after, _NEW, _RUN_S)

    expected = Summary.read(fleets.embedded / _NEW / "summary.json")
    assert summary.update is not None
    assert expected.update is not None
    assert summary.update.kept == ["cam-2"]
    assert summary.update.computed == {"cam-9": "it joined", "badge-1": "it joined"}
    assert summary.update.left == ["cam-1"]
    assert summary.update.searched == expected.update.searched == {"south": "it is new"}
    assert [cluster.similarity for cluster in summary.clusters] == [
        cluster.similarity for cluster in expected.clusters
    ]
    assert _sums(_device(after, _NEW, "cam-2")) == kept
    for name in ("cam-2", "cam-9", "badge-1"):
        model = Path("devices") / name / "model.safetensors"
        assert after.model(_NEW, name) == (fleets.embedded / _NEW / model).read_bytes(), name
    assert after.sent(_NEW, "north", "cam-2", "HeaderAssignment") == 0
