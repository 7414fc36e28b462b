"""The short examples, run as `examples/README.md` says, in a clone's folder with nothing made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from acme_fleet.models.shipped import load_device_model
from acme_fleet.runs.summary import Summary

_ROOT = Path(__file__).parents[2]
_EXAMPLES = _ROOT / "examples"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples beside what the first of them makes."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(_EXAMPLES, folder / "examples")
    _run(folder, sys.executable, "examples/made.py")
    return folder


def _run(folder: Path, *command: str, **variables: str) -> str:
    """The output of a command; the commands of this environment are on the PATH."""
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": own, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=variables, text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_own_family(clone: Path):
    said = _run(clone, sys.executable, "examples/own_family.py")
    assert "acme_camembert, heads in each layer: [2, 2] of 4" in said
    assert "[{'weather': 0.9" in said


def _cells(folder: Path) -> list[str]:
    cells = json.loads((folder / "first_steps.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_notebook_cell_by_cell(clone: Path):
    """A cell's last expression is shown as a notebook shows it."""
    program = clone / "cells.py"
    program.write_text(_AS_A_NOTEBOOK.format(cells=_cells(clone / "examples")))
    said = _run(clone / "examples", sys.executable, str(program), MPLBACKEND="Agg")
    assert "'garage': '30 kB'" in said
    assert "<table><caption>" in said
    assert "Figure(" in said
    assert "[{'weather': 0.9" in said
    devices = Summary.read(clone / "runs/first-steps/summary.json").devices  # of bert.yaml
    assert len(devices) == 6
    assert min(device.accuracy for device in devices) > 0.9  # ten lines: 0.83 to 0.91
    assert all(device.size_bytes <= device.capacity_bytes for device in devices)


_AS_A_NOTEBOOK = """
import ast, sys
sys.path.insert(0, "")
names = {{}}
for cell in {cells!r}:
    *first, last = ast.parse(cell).body
    exec(compile(ast.Module(first, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        continue
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    print(getattr(value, "_repr_html_", lambda: None)() or value)
"""


def test_notebook_is_committed_without_outputs():
    for cell in json.loads((_EXAMPLES / "first_steps.ipynb").read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("ipykernel") is None,
    reason="no Jupyter: pip install nbclient ipykernel",
)
def test_notebook_in_a_kernel(clone: Path):
    command = "import nbclient.cli; nbclient.cli.main()"
    _run(clone, sys.executable, "-W", "ignore", "-c", command, "examples/first_steps.ipynb")


@pytest.mark.slow
def test_writers(clone: Path):
    _run(clone, "acme", "run", "examples/writers.yaml", "--out", "runs/writers")
    devices = Summary.read(clone / "runs/writers/summary.json").devices
    assert [device.name for device in devices] == ["ada", "ben", "eva", "leo", "mia", "tom"]
    ours = sum(device.accuracy for device in devices)
    ten_lines = sum(device.accuracy_probe or 0 for device in devices)
    assert ours > ten_lines


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_photos_to_server(clone: Path, unused_port: int):
    said = _run(clone, "sh", "examples/photos_to_server.sh", PORT=str(unused_port))
    assert "wrote runs/served/artifacts/cam-1" in said
    assert '{"predictions": [{"class": "digit-0", ' in said
    load_device_model(clone / "runs/served/devices/cam-1")


@pytest.fixture
def unused_port() -> int:
    from acme_research.frame.loopback import free_ports

    return free_ports(1)[0]


def test_every_example_is_listed():
    listed = (_EXAMPLES / "README.md").read_text()
    for path in _EXAMPLES.iterdir():
        if path.suffix in {".py", ".sh", ".ipynb", ".yaml"}:
            assert path.with_suffix("").name in listed, path.name
