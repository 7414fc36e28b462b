"""A fleet after its run: who joins, leaves or changes is computed, the others stay bit for bit."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets
from typer.testing import CliRunner

import acme_fleet
from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError, RunError
from acme_fleet.pipeline import customize
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Observer
from acme_fleet.runs.locks import held
from acme_fleet.runs.summary import Summary
from acme_fleet.updates.drift import measure_drift
from acme_fleet.updates.update import update
from event_records import event_records
from tiny_fleet import tiny

_NORTH, _SOUTH = 0, 1


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _stages(path: Path) -> set[tuple[str, str]]:
    events = event_records(path / "events.jsonl")
    return {(event["actor"], event["stage"]) for event in events if "stage" in event}


def write_digits(path: Path, first: int, classes: range = range(10)) -> Path:
    """120 digits as a device's own data."""
    digits = datasets.load_digits()
    chosen = np.flatnonzero(np.isin(digits.target, classes))[first : first + 120]
    np.savez(path, images=digits.images[chosen] / 16, labels=digits.target[chosen])
    return path


def changed(edit: Callable[[list[dict[str, Any]]], object], **settings: Any) -> Fleet:
    """The tiny fleet with its clusters edited."""
    content = tiny(**settings).model_dump(mode="json")
    edit(content["clusters"])
    return Fleet.parse(content)


def _joined(own: Path) -> Fleet:
    """One device leaves, one joins, one may store more."""

    def edit(clusters: list[dict[str, Any]]) -> None:
        joiner = {"name": "cam-9", "storage": "80 kB", "data": str(own)}
        clusters[_NORTH]["devices"] = [clusters[_NORTH]["devices"][1], joiner]
        clusters[_SOUTH]["devices"][1]["storage"] = 60_000

    return changed(edit)


_made: dict[Path, Path] = {}


@pytest.fixture
def updated(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The update of the finished run to ``_joined``. Not to be changed."""
    if finished.path not in _made:
        folder = tmp_path_factory.mktemp("updated")
        before = _sums(finished.path)
        update(finished.path, _joined(write_digits(folder / "own.npz", 0)), folder / "run")
        assert _sums(finished.path) == before, "the earlier run was changed"
        _made[finished.path] = folder / "run"
    return _made[finished.path]


def test_only_the_joiner_is_computed(finished, updated: Path):
    summary = Summary.read(updated / "summary.json")
    assert summary.update is not None
    assert summary.update.kept == ["cam-2", "badge-1", "badge-2"]
    assert summary.update.computed == {"cam-9": "it joined"}
    assert (summary.update.left, summary.update.searched) == (["cam-1"], {})
    for name in summary.update.kept:
        assert _sums(updated / "devices" / name) == _sums(finished.path / "devices" / name)
    assert not (updated / "devices" / "cam-1").exists()
    trained = {actor for actor, stage in _stages(updated) if stage.startswith(("round", "fine"))}
    assert trained == {"cam-9"}
    assert not {"reference", "elastic", "candidate losses", "header search"} & {
        stage for _, stage in _stages(updated)
    }
    assert ("cam-2", "taken over") in _stages(updated)
    # The joiner has the group's backbone and header, and heard its peer.
    north = next(cluster for cluster in summary.clusters if cluster.name == "north")
    assert north.variant == finished.summary.clusters[0].variant
    assert north.genotype == finished.summary.clusters[0].genotype
    assert north.device_names == ["cam-2", "cam-9"]
    assert north.similarity[1][0] > 0
    assert (north.lost, north.missed) == ({}, {})
    by_name = {device.name: device for device in summary.devices}
    old = {device.name: device for device in finished.summary.devices}
    assert by_name["cam-2"].accuracy == old["cam-2"].accuracy
    assert by_name["badge-2"].capacity_bytes == 60_000
    assert by_name["cam-9"].size_bytes <= 80_000
    # All that a device ever sent counts, also before the update.
    assert summary.sent["cam-2"]["FeatureSample"] == finished.summary.sent["cam-2"]["FeatureSample"]
    assert len(summary.sent["cam-9"]["FeatureSample"]) == 1
    assert summary.traffic.device_up_bytes < finished.summary.traffic.device_up_bytes
    assert "cam-9 was computed: it joined" in (updated / "report.html").read_text()
    explained = CliRunner().invoke(app, ["explain", str(updated), "--device", "badge-2"])
    assert explained.exit_code == 0, explained.output
    assert acme_fleet.load(updated / "devices" / "cam-9") is not None


def test_interrupted_update_goes_on_as_any_run(finished, updated: Path, tmp_path: Path):
    class Stop(Observer):
        def __init__(self, actor: str, name: str) -> None:
            self.at = actor, name

        def stage(self, actor: str, name: str, *_: object) -> None:
            if (actor, name) == self.at:
                raise KeyboardInterrupt

    fleet, path = _joined(write_digits(tmp_path / "own.npz", 0)), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        update(finished.path, fleet, path, observer=Stop("badge-2", "taken over"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.npz"], "nothing half done is left"
    with held(tmp_path / ".run.update"):  # as by another process that makes it
        (tmp_path / ".run.update" / "fleet.yaml").touch()
        with pytest.raises(RunError, match="is in use by process"):
            update(finished.path, fleet, path)
        assert (tmp_path / ".run.update" / "fleet.yaml").exists()
    with pytest.raises(KeyboardInterrupt):
        update(finished.path, fleet, path, observer=Stop("cam-9", "round 2"))
    assert not (path / "summary.json").exists()
    with pytest.raises(RunError, match="go on with it: acme run"):
        update(finished.path, fleet, path)
    again = customize(RunDirectory(path).fleet, path, resume=True)
    assert again.update is not None
    assert again.update.computed == {"cam-9": "it joined"}
    for name in ("cam-2", "cam-9", "badge-1"):
        model = Path("devices") / name / "model.safetensors"
        assert (path / model).read_bytes() == (updated / model).read_bytes()


def test_update_of_an_update(finished, updated: Path, tmp_path: Path):
    """A device comes back, one has new data, one trains again; the last one stays."""
    new = write_digits(tmp_path / "new.npz", 300, range(5))

    def edit(clusters: list[dict[str, Any]]) -> None:
        clusters[_NORTH]["devices"][1]["data"] = str(new)

    fleet = changed(edit)
    (tmp_path / "fleet.yaml").write_text(fleet.to_yaml())
    arguments = ["update", str(updated), "--fleet", str(tmp_path / "fleet.yaml")]
    arguments += ["--out", str(tmp_path / "run"), "--refresh", "badge-2"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert "computed cam-1: it joined" in told.output
    assert "computed badge-2: it was asked to train again" in told.output
    summary = Summary.read(tmp_path / "run" / "summary.json")
    assert summary.update is not None
    assert summary.update.kept == ["badge-1"]
    assert summary.update.computed["cam-2"] == "it has new data"
    # Its share of the data set waited for it.
    counts = ("cam-1", "badge-1")
    samples = {device.name: device.test_samples for device in summary.devices}
    before = {device.name: device.test_samples for device in finished.summary.devices}
    assert [samples[name] for name in counts] == [before[name] for name in counts]
    assert _sums(tmp_path / "run/devices/badge-1") == _sums(finished.path / "devices/badge-1")
    assert ("south", "header search") not in _stages(tmp_path / "run")


@pytest.mark.slow
def test_other_limits_and_a_new_cluster(finished, tmp_path: Path):
    own = write_digits(tmp_path / "own.npz", 0)

    def tight(clusters: list[dict[str, Any]]) -> None:
        clusters[_NORTH]["devices"][0]["storage"] = 16_500
        clusters[_SOUTH]["devices"][0]["storage"] = 18_000
        east = copy.deepcopy(clusters[_NORTH]) | {"name": "east", "data": str(own)}
        east["devices"] = [east["devices"][0] | {"name": "east-1", "data": str(own)}]
        clusters.append(east)

    fleet = changed(tight)
    with pytest.raises(FleetError, match=r"badge-2 did not change and would search .*--refresh"):
        update(finished.path, fleet, tmp_path / "run", refresh=["cam-2"])
    with pytest.raises(FleetError, match=r"cam-2 did not change and would get the backbone w 0\.5"):
        update(finished.path, fleet, tmp_path / "run", refresh=["badge-2"])
    assert not (tmp_path / "run").exists()
    summary = update(finished.path, fleet, tmp_path / "run", refresh=["cam-2", "badge-2"])
    assert summary.update is not None
    assert summary.update.kept == []
    assert summary.update.computed["cam-1"] == "its limits lead to another backbone"
    assert summary.update.computed["badge-1"] == "its model does not fit its storage any more"
    assert summary.update.searched == {
        "north": "its backbone is new to it",
        "south": "its header was too large for badge-1",
        "east": "it is new",
    }
    sizes = {device.name: device.size_bytes for device in summary.devices}
    assert sizes["badge-1"] <= 18_000
    assert sizes["cam-1"] <= 16_500
    chosen = {cluster.name: cluster.variant for cluster in summary.clusters}
    assert chosen["north"] != finished.summary.clusters[0].variant
    assert sizes.keys() == {"cam-1", "cam-2", "badge-1", "badge-2", "east-1"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 4}, "seed: 3 there, 4 here"),
        ({"search.steps": 4}, "search.steps: 3 there, 4 here"),
        ({"data.public": 0.3}, "data.public: 0.4 there, 0.3 here"),
    ],
)
def test_other_settings_need_a_run(finished, tmp_path: Path, settings: dict[str, Any], named: str):
    with pytest.raises(FleetError, match=f"{named}; put them back, or start a run"):
        update(finished.path, tiny(**settings), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_taken_over_is_told(finished, tmp_path: Path):
    def stranger(clusters: list[dict[str, Any]]) -> None:
        clusters[_NORTH]["devices"].append({"name": "cam-9", "storage": "80 kB"})

    with pytest.raises(FleetError, match=r"device cam-9: data\.dealt_to deals the data"):
        update(finished.path, changed(stranger), tmp_path / "run")
    with pytest.raises(FleetError, match="no device 'nobody'"):
        update(finished.path, tiny(), tmp_path / "run", refresh=["nobody"])
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(finished.path / "fleet.yaml", unfinished)
    with pytest.raises(RunError, match="is not finished; go on with it"):
        update(unfinished, tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_and_older_runs_are_told(finished, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(finished.path, old)
    shutil.rmtree(old / "edges" / "north" / "samples")
    with pytest.raises(RunError, match="holds no feature sample of cam-2: an older version"):
        update(old, tiny(), tmp_path / "run", refresh=["cam-1"])
    with (old / "devices" / "cam-1" / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(RunError, match=r"cam-1/model.safetensors is not as the run left it"):
        update(old, tiny(), tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


def test_drift_is_seen_where_there_is_some(finished, tmp_path: Path):
    """Digits that cam-1 never saw against those it knows; nothing in the run changes."""
    before = _sums(finished.path)
    drifts = {}
    for name, classes in (("all", range(10)), ("few", range(3))):
        path = write_digits(tmp_path / f"{name}.npz", 0, classes)
        drifts[name] = measure_drift(finished.path, "cam-1", path)
    few = drifts["few"]
    known = next(device for device in finished.summary.devices if device.name == "cam-1")
    assert few.old.score == pytest.approx(known.accuracy)
    assert (few.old.count, few.new.count) == (known.test_samples, 120)
    for drift in drifts.values():
        assert sum(shift.old for shift in drift.classes) == pytest.approx(1)
        assert sum(shift.new for shift in drift.classes) == pytest.approx(1)
        assert drift.distance is not None
        assert drift.within is not None
        assert drift.distance > drift.within > 0
        assert {"shares of classes", "accuracy", "features"} == drift.chances.keys()
        assert set(drift.changed) >= {"features"}
    assert "shares of classes" in few.changed
    assert few.gains
    assert few.after.score > few.before.score
    assert few.after.count == few.before.count < 120
    assert {shift.name for shift in few.classes if shift.new} <= {"0", "1", "2"}
    assert _sums(finished.path) == before


def test_drift_is_told_in_words(finished, tmp_path: Path):
    path = write_digits(tmp_path / "new.npz", 0)
    arguments = ["drift", str(finished.path), "--device", "cam-2", "--data", str(path)]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    for part in ("shipped", "refreshed", "shares of classes", "Wasserstein", "a refresh on the"):
        assert part in told.output
    assert "the data has changed: " in told.output
    assert "a refresh is " in told.output
    told = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "nowhere.npz")])
    assert told.exit_code == 2
    assert "device cam-2: data" in told.output
