"""One tiny fleet, seconds to run, and the same run for all who only look at it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from sklearn import datasets

from acme_fleet.config.fleet import Fleet
from acme_fleet.pipeline import customize
from acme_fleet.profiling import measure as measurement
from acme_fleet.report.page import plots
from acme_fleet.runs.summary import Summary
from event_records import event_records
from tiny_fleet import tiny


@dataclass(frozen=True)
class Run:
    """A finished run."""

    fleet: Fleet
    path: Path
    summary: Summary

    @property
    def models(self) -> dict[str, bytes]:
        """Each device's model file."""
        return models_of(self.path)


def models_of(path: Path) -> dict[str, bytes]:
    return {
        file.parent.name: file.read_bytes()
        for file in sorted(path.glob("devices/*/model.safetensors"))
    }


_load_digits = cache(datasets.load_digits)  # a file of text, read for every run


@pytest.fixture(autouse=True)
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Empty figures, no shape checks, and as little waiting as possible; ``quick.undo()`` for all.

    The run of ``finished`` is made before, with everything.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "svg", lambda *_: "<svg></svg>")
        patch.setattr(measurement, "_LEAST_S", 0.0)
        patch.setattr(measurement, "_WARM_UP", 0)
        patch.setattr(measurement.measure_latency, "__defaults__", (1,))
        patch.setattr(datasets, "load_digits", _load_digits)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield patch


@pytest.fixture(scope="session", name="tiny")
def _tiny() -> Callable[..., Fleet]:
    """See :func:`tiny_fleet.tiny`."""
    return tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Fleet]) -> Run:
    """The tiny fleet's run from beginning to end. Not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    fleet = tiny()
    return Run(fleet, path, customize(fleet, path))


def _is_early(event: dict[str, Any]) -> bool:
    return event.get("actor") in ("cloud", "rivals") or event.get("stage") in (
        "header search",
        "header rivals",
    )


def without_devices(source: Path, path: Path) -> Path:
    """A copy of a finished run as it was after phases 1 and 2-1: no device has a model yet."""
    path.mkdir()
    shutil.copy(source / "fleet.yaml", path)
    done = [event for event in event_records(source / "events.jsonl") if _is_early(event)]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in done))
    for name in ("cloud", "rivals"):
        shutil.copytree(source / name, path / name)
    for edge in source.glob("edges/*"):
        (path / "edges" / edge.name).mkdir(parents=True)
        for name in ("coarse.safetensors", "contenders.json"):
            shutil.copy(edge / name, path / "edges" / edge.name)
    return path


@pytest.fixture
def prepared(finished: Run, tmp_path: Path) -> Path:
    """A run stopped after phases 1 and 2-1: its rival is measured, no device has a model yet."""
    return without_devices(finished.path, tmp_path / "prepared")


@pytest.fixture
def north(prepared: Path) -> Callable[..., Fleet]:
    """``north(**changes)``: the run of ``prepared``, but of the cluster north alone."""

    def alone(**changes: Any) -> Fleet:
        fleet = tiny(**changes)
        fleet = fleet.model_copy(update={"clusters": fleet.clusters[:1]})
        (prepared / "fleet.yaml").write_text(fleet.to_yaml())
        shutil.rmtree(prepared / "edges" / "south", ignore_errors=True)
        return fleet

    return alone
