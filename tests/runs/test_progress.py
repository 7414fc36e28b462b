"""``progress.json``: the stages that are not over, how a run ended, and nothing that hinders it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.errors import FleetError
from acme_fleet.runs.directory import PROGRESS
from acme_fleet.runs.forecast import Expected
from acme_fleet.runs.progress import ProgressFile, begun_stages, progress_file


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / PROGRESS).read_text())


class Seen:
    def __init__(self) -> None:
        self.stages: list[tuple[object, ...]] = []

    def stage(self, *about: object) -> None:
        self.stages.append(about)


def test_stages_are_there_until_they_are_over(tmp_path: Path) -> None:
    seen = Seen()
    with progress_file(tmp_path, seen) as progress:
        progress.stage("cloud", "reference", 0, 3)
        first = told(tmp_path)
        progress.stage("cloud", "reference", 1, 3, "loss 0.3\n")
        progress.stage("north", "search", 0, 9)
        progress.stage("north", "search", 9, 9)
        assert (first["pid"], first["ended"]) == (os.getpid(), None)
        (stage,) = first["stages"]
        assert (stage["actor"], stage["stage"], stage["done"], stage["total"]) == (
            *("cloud", "reference"),
            *(0, 3),
        )
    (stage,) = told(tmp_path)["stages"]
    assert (stage["done"], stage["note"]) == (1, "loss 0.3")
    assert seen.stages[-1] == ("north", "search", 9, 9, "")
    assert len(seen.stages) == 4


def test_what_came_last_is_written_though_nothing_follows(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path)
    for done in range(50):
        progress.stage("cloud", "reference", done, 50)
    assert told(tmp_path)["stages"][0]["done"] == 0  # not one write for each
    end = time.monotonic() + 30
    while told(tmp_path)["stages"][0]["done"] < 49:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("error", "how", "reason"),
    [
        (None, "finished", ""),
        (FleetError("no candidate\nfits"), "failed", "no candidate fits"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "interrupted", ""),
    ],
)
def test_the_end_is_told(
    error: BaseException | None, how: str, reason: str, tmp_path: Path
) -> None:
    def work() -> None:
        with progress_file(tmp_path):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()
    assert told(tmp_path)["ended"] == {"how": how, "reason": reason}


def test_a_file_that_cannot_be_written_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).mkdir()
    with progress_file(tmp_path) as progress:
        progress.stage("cloud", "reference", 0, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / PROGRESS]


def test_the_time_of_a_stage_goes_on_after_an_interruption(tmp_path: Path) -> None:
    assert begun_stages(tmp_path) == {}
    first = {"actor": "cloud", "stage": "reference", "spent": 100.0}
    (tmp_path / PROGRESS).write_text(json.dumps({"stages": [first]}))
    for _ in range(2):
        with progress_file(tmp_path) as progress:
            progress.stage("cloud", "reference", 0, 3)
            progress.stage("north", "search", 0, 3)
    begun = begun_stages(tmp_path)
    assert begun["cloud", "reference"] >= 100 > begun["north", "search"]
    for damaged in ("[]", "{", '{"stages": [{"actor": "cloud"}]}', '{"stages": 3}'):
        (tmp_path / PROGRESS).write_text(damaged)
        assert begun_stages(tmp_path) == {}


def test_the_whole_run_is_told_to_who_watches(tmp_path: Path) -> None:
    with progress_file(tmp_path) as progress:
        progress.plan({"reference": Expected(1, 100.0), "elastic": Expected(1, 300.0)})
        progress.stage("cloud", "reference", 0, 1)
        time.sleep(0.01)
        progress.stage("cloud", "reference", 1, 1)
    whole = told(tmp_path)["whole"]
    assert whole["done"] == 0.25
    assert whole["left_s"] == whole["later_s"] > 0  # no stage is under way
