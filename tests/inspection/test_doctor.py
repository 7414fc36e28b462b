"""`acme doctor`: what it finds on this machine, and what it says of others."""

from __future__ import annotations

import json
from importlib.metadata import version as version_of
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.inspection import doctor
from acme_fleet.inspection.doctor import Check, examine_machine


def _found(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in examine_machine(folder)}


def test_this_machine(tmp_path: Path):
    found = _found(tmp_path)
    assert "packages" not in found  # of all that is needed nothing is missing
    assert found["torch"].told.startswith(version_of("torch"))
    assert str(tmp_path) in found["disk of runs"].told
    assert found["extra privacy"].state == "fine"
    assert {"cores", "vectors", "bfloat16", "GPU", "memory", "extra flower"} <= found.keys()
    assert not {"extra dev", "extra docs", "extra fuzz"} & found.keys()
    assert all("extra " not in name or check.told for name, check in found.items())


def test_json_has_the_same(monkeypatch: pytest.MonkeyPatch):
    checks = [Check("a", "fine", "b"), Check("disk", "wrong", "full", "make room")]
    monkeypatch.setattr(doctor, "examine_machine", lambda _: iter(checks))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)[1]["remedy"] == "make room"
    result = CliRunner().invoke(app, ["doctor"])
    assert "make room" in result.output


def test_an_extra_that_is_missing_or_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def there(name: str) -> str:
        if name == "onnx":
            raise doctor.PackageNotFoundError(name)
        return "0.1" if name == "pillow" else version_of(name)

    monkeypatch.setattr(doctor, "version", there)
    found = _found(tmp_path)
    assert found["extra export"].state == "optional"
    assert found["extra export"].told.startswith("not installed, optional, for acme export")
    assert "onnx is not installed" in found["extra export"].told
    assert "pillow is 0.1, and must be >=11" in found["extra export"].told  # of the runner's extra
    assert found["extra export"].remedy == "pip install 'acme-fleet[export]'"


def test_a_library_of_a_wrong_version_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = {"transformers": "4.50.0"}
    monkeypatch.setattr(doctor, "version", lambda name: old.get(name) or version_of(name))
    found = _found(tmp_path)
    assert found["packages"].state == "wrong"
    assert "transformers is 4.50.0, and must be" in found["packages"].told


def test_more_threads_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    cores = _found(tmp_path)["cores"]
    assert cores.state == "wrong"
    assert cores.remedy is not None
    assert cores.remedy.startswith("OMP_NUM_THREADS=")


def test_a_container_has_what_its_limits_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {
        "/sys/fs/cgroup/cpu.max": "100000 100000\n",
        "/sys/fs/cgroup/memory.max": "3000000000\n",
        "/sys/fs/cgroup/memory.current": "1000000000\n",
        "/proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable: 88888888 kB\n",
    }
    monkeypatch.setattr(doctor, "_text", lambda path: files.get(path, ""))
    found = _found(tmp_path)
    assert doctor.usable_cores() == 1
    assert found["memory"].told.startswith("2 GB free of 3 GB")
    assert found["memory"].state == "note"
