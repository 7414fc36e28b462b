"""The wheels: all that the packages read is in them, and they work without the clone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_LEFT = {".pyc"}  # what Python makes


def _files(package: str) -> set[str]:
    """Files of a package in the clone, as a wheel names them."""
    folder = _ROOT / "src" / package
    return {
        path.relative_to(_ROOT / "src").as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in _LEFT
    }


def test_a_wheel_has_every_file_of_its_package():
    """By hatchling's own rules, which leave out what git ignores; nothing is built."""
    wheel: Any = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(_ROOT))
    packed = {each.distribution_path for each in builder.recurse_included_files()}
    assert _files("acme_fleet") <= packed
    others = {name for name in _files("acme_fleet") if not name.endswith(".py")}
    assert {"acme_fleet/demo.yaml", "acme_fleet/py.typed"} < others
    assert not any(name.startswith(("tests", "research", "docs")) for name in packed)


def test_no_file_outside_of_the_package_is_named():
    """A path from a module's own place leads no further up than its package."""
    climbs = re.compile(r"__file__\)(?:\.resolve\(\))?\.parents\[(\d+)\]")
    for path in sorted((_ROOT / "src").rglob("*.py")):
        depth = len(path.relative_to(_ROOT / "src").parts) - 1  # folders from the package down
        for number in climbs.findall(path.read_text()):
            assert int(number) < depth, path


def _short(text: str) -> str:
    """The demo with an epoch or two: it need not learn."""
    return re.sub(r"steps: \d+", "steps: 2", re.sub(r"epochs: \d+", "epochs: 2", text))


@pytest.mark.slow
def test_installed_without_the_clone(tmp_path: Path):
    """Both wheels in an environment of their own, which takes only dependencies from this one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    sources = [_ROOT, _ROOT / "runtime"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, *sources], check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", *wheels.glob("*.whl")], check=True
    )
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched, and its own .pth files, such as the clone's, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def acme(*arguments: str | Path) -> str:
        command = [tmp_path / "venv" / "bin" / "acme", *arguments]
        told = subprocess.run(command, capture_output=True, text=True, cwd=work, env=alone)
        assert told.returncode == 0, told.stderr
        return told.stdout

    code = "import acme_fleet, acme_fleet_runtime as r; print(acme_fleet.__file__, r.__file__)"
    where = [python, "-c", code]
    told = subprocess.run(where, capture_output=True, text=True, cwd=work, env=alone, check=True)
    assert told.stdout.count(str(packages)) == 2
    assert "Customise a fleet" in acme("--help")
    found = {check["name"]: check for check in json.loads(acme("doctor", "--json"))}
    assert found["torch"]["state"] == "fine"
    acme("init", "fleet.yaml")
    fleet = work / "fleet.yaml"
    fleet.write_text(_short(fleet.read_text()))
    assert "candidates" in acme("check", "fleet.yaml")
    assert "report:" in acme("run", "fleet.yaml", "--out", "run")
    assert "<svg" in (work / "run" / "report.html").read_text()
    assert "accuracy" in acme("predict", "run", "--device", "cam-1")
    acme("export", "run", "--device", "badge-1")
    assert (work / "run" / "artifacts" / "badge-1" / "run.py").exists()
    acme("distill", "init", "task.yaml")
    assert "feasible" in acme("distill", "plan", "task.yaml")
    acme("init", "mine.yaml", "--dataset", "digits", "--devices", "2")
