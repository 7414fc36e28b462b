"""The runner's own distribution: its wheel, alone in an environment, predicts and serves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

import acme_fleet_runtime
from tiny_artifact import quadrant, write_artifact

_ROOT = Path(__file__).parents[2]
_MOST_BYTES = 190_000_000  # ONNX Runtime 78 MB, NumPy 73 MB, Pillow 23 MB


def test_what_it_needs_is_what_it_imports():
    """Nothing of the customiser; what only some artifacts need is imported when it is used."""
    project = tomllib.loads((_ROOT / "runtime" / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(each for extra in optional for each in extra)]
    names = {re.split(r"[<>=]", each)[0].strip() for each in needed}
    assert names == {
        *("onnxruntime", "numpy", "pillow", "tokenizers", "jinja2"),
        *("tuf", "securesystemslib[crypto]"),
    }
    imported = {
        match
        for path in Path(acme_fleet_runtime.__file__).parent.rglob("*.py")
        for match in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
    }
    others = imported - sys.stdlib_module_names - {"acme_fleet_runtime", "a"}
    assert others == {"numpy", "onnxruntime", "tokenizers", "PIL", "jinja2"}


@pytest.mark.slow
def test_wheel_alone(tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["-c", _ROOT / "constraints.txt"]
    subprocess.run([*pip, *constraints, f"{_ROOT / 'runtime'}[images]"], check=True)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    assert not (packages / "torch").exists()
    sizes = [
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file() and path.relative_to(packages).parts[0] not in ("pip", "setuptools")
    ]
    assert sum(sizes) < _MOST_BYTES

    write_artifact(tmp_path / "artifact", "images")
    quadrant(2).save(tmp_path / "a.png")
    command = tmp_path / "venv" / "bin" / "acme-runtime"
    told = subprocess.run(
        [command, "predict", tmp_path / "artifact", tmp_path / "a.png"],
        capture_output=True,
        text=True,
        check=True,
        env=alone,
    )
    assert told.stdout.endswith("  lower left\n")
    with subprocess.Popen(
        [command, "serve", tmp_path / "artifact", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=alone,
    ) as server:
        assert server.stdout is not None
        place = server.stdout.readline().split()[-1]
        request = urllib.request.Request(
            f"{place}/predict", (tmp_path / "a.png").read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["predictions"][0]["class"] == "lower left"
        server.terminate()
        assert server.wait(20) == 0
