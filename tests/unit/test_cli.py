"""The command line: what people type, and what bad input gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml
from typer.testing import CliRunner

from acme_fleet.cli import EXAMPLE, app
from acme_fleet.fleet import Fleet

COMMANDS = ("demo", "init", "check", "run", "report", "predict")


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_help_lists_the_commands_and_needs_no_torch() -> None:
    code, output = invoke("--help")
    assert code == 0
    assert all(command in output for command in COMMANDS)
    probe = (
        "import sys; from typer.testing import CliRunner; from acme_fleet.cli import app; "
        "CliRunner().invoke(app, ['--help']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_init_writes_what_check_accepts(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    assert invoke("init", path)[0] == 0
    code, output = invoke("check", path)
    assert code == 0
    assert "north" in output
    assert "1,226,728" in output  # the largest candidate, to the byte
    before = path.read_text()
    code, output = invoke("init", path)
    assert code == 2
    assert "exists already" in output
    assert path.read_text() == before


def changed(tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load(EXAMPLE.read_text())
    content.update(changes)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_limit_that_nothing_fits(tmp_path: Path) -> None:
    cluster = {"name": "tiny", "devices": [{"name": "speck", "storage": "50 kB"}]}
    code, output = invoke("check", changed(tmp_path, clusters=[cluster]))
    assert code == 2
    assert all(word in output for word in ("tiny", "speck", "50,000", "smallest candidate"))


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    code, output = invoke("run", changed(tmp_path, colour="blue"), "--out", tmp_path / "run")
    assert code == 2
    assert "colour: unknown key" in output
    assert not (tmp_path / "run").exists()


def test_run_directories_are_not_mixed_up(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "fleet.yaml").write_text(Fleet.from_yaml(EXAMPLE).to_yaml())
    code, output = invoke("run", EXAMPLE, "--out", out)
    assert code == 2
    assert "already holds a run" in output
    code, output = invoke("run", EXAMPLE, "--out", out, "--seed", "1", "--resume")
    assert code == 2
    assert "another fleet" in output
    code, output = invoke("predict", out, "--device", "nobody")
    assert code == 2
    assert "nobody" in output
    assert "cam-1" in output
    assert invoke("report", out)[0] == 2
