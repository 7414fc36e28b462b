"""Runs of known fleets, which go on where they stopped, and logs of finished parts."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.models.features import Classifier
from acme_fleet.models.storage import read_tensors
from acme_fleet.pipeline import customize
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import Summary
from acme_research.frame.places import EXAMPLES

Begin = Callable[[RunDirectory], object]
"""Puts into a new run directory what another run has done already."""


def parser_of(doc: str | None, out: str | None = None, seeds: int = 5) -> argparse.ArgumentParser:
    """The options of a script: ``--seeds``, and ``--out`` where it keeps finished parts."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=seeds)
    if out:
        parser.add_argument("--out", type=Path, default=Path("runs") / out)
    return parser


def demo(seed: int) -> Fleet:
    """The fleet of ``acme demo``."""
    return Fleet.from_yaml(EXAMPLE).model_copy(update={"seed": seed})


def cifar20(data: Path, seed: int) -> dict[str, Any]:
    """The settings of ``examples/cifar20.yaml`` on the files in a folder."""
    settings = yaml.safe_load((EXAMPLES / "cifar20.yaml").read_text())
    for part in ("train", "test"):
        settings["data"][part] = sorted(map(str, data.resolve().glob(f"{part}-*.parquet")))
    return settings | {"seed": seed}


def reference_of(path: Path, world: World) -> Classifier:
    """The trained reference of a run, frozen, before it was made elastic."""
    run = RunDirectory.open(path)
    model = untrained_reference(run.fleet, world.public, world.classes, world.vocabulary)
    model.load_state_dict(read_tensors(run.cloud / "reference.safetensors")[0])
    return model.requires_grad_(False).eval()


def finished_run(fleet: Fleet, path: Path, begin: Begin | None = None) -> Summary:
    """A fleet's whole run: read where it is finished, otherwise begun or gone on with."""
    if begin is not None and not (path / "fleet.yaml").exists():
        begin(RunDirectory.create(path, fleet, resume=False))
    if (path / "summary.json").exists():
        return Summary.read(path / "summary.json")
    return customize(fleet, path, resume=True)


def same_cloud(other: Path) -> Begin:
    """To begin a run with the cloud's stages of another."""
    return lambda run: shutil.copytree(RunDirectory(other).cloud, run.cloud, dirs_exist_ok=True)


def same_search(other: Path) -> Begin:
    """To begin a run with the cloud's stages, the rivals and the coarse headers of another."""

    def begin(run: RunDirectory) -> None:
        same_cloud(other)(run)
        if (rivals := other / "rivals").exists():
            trained = shutil.ignore_patterns("headers-*.json")  # by rounds of their own
            shutil.copytree(rivals, run.path / "rivals", ignore=trained)
        for edge in other.glob("edges/*"):
            run.edge(edge.name).mkdir(parents=True)
            for name in ("coarse.safetensors", "contenders.json"):
                if (made := edge / name).exists():
                    shutil.copy(made, run.edge(edge.name))

    return begin


def add_line(path: Path, row: dict[str, Any]) -> None:
    """Note a finished part at the end of a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Parts that an earlier start has finished, one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
