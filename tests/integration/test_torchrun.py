"""The cloud's part of a run by two processes that ``torchrun`` starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.models.storage import read_tensors
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary

_ONCE = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 64}


@pytest.mark.slow
def test_two_processes_make_the_same_backbones(tiny: Callable[..., Fleet], tmp_path: Path) -> None:
    """All trainings: of the reference, both steps of Eq. 9, finalists and their recovery."""
    fleet = tiny(
        **{
            "reference.training": _ONCE,
            "backbone.distillation.training": _ONCE,
            "backbone.distillation.recovery": {**_ONCE, "epochs": 3},
            "backbone.allocation": "global",
            "search.rivals": False,
            "personalization.rounds": 1,
        }
    )
    (tmp_path / "fleet.yaml").write_text(fleet.to_yaml())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "acme_fleet", "run"),
            *(str(tmp_path / "fleet.yaml"), "--out", str(tmp_path / "two")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tiny, seed 3") == 1  # the others are silent
    alone = customize(fleet, tmp_path / "one")
    together = Summary.read(tmp_path / "two" / "summary.json")
    assert [c.variant for c in together.clusters] == [c.variant for c in alone.clusters]
    paths = sorted((tmp_path / "one" / "cloud").glob("*.safetensors"))
    assert {"reference", "elastic"} < {path.stem for path in paths}
    assert any(path.stem.startswith(("tried-", "recovered-")) for path in paths)
    for path in paths:
        mine, _ = read_tensors(path)
        other, _ = read_tensors(tmp_path / "two" / "cloud" / path.name)
        for name, value in mine.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_many_hosts_train_in_one_process(
    tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    (tmp_path / "fleet.yaml").write_text(tiny().to_yaml())
    (tmp_path / "site.yaml").write_text("{}")
    arguments = ["run", str(tmp_path / "fleet.yaml"), "--engine", "flower"]
    result = CliRunner().invoke(app, [*arguments, "--config", str(tmp_path / "site.yaml")])
    assert result.exit_code != 0
    assert (
        "--engine flower: the cloud of many hosts trains in one process"
        in f"{result.output}{result.exception}"
    )
