"""The choice of a backbone in a run: by the rule that is set, recorded, explained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import acme_fleet
from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.edge.server import EdgeServer
from acme_fleet.errors import QuorumError
from acme_fleet.inspection.explain import compare_matching, explain_device
from acme_fleet.pipeline import assemble, customize
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from event_records import event_records


@pytest.mark.parametrize("rule", ["nearest", "literal"])
def test_cloud_chooses_by_the_rule_of_the_settings(
    finished: Any, tiny: Callable[..., Fleet], tmp_path: Path, rule: str
) -> None:
    """With all losses in one window the literal rule can only take the least loss."""
    fleet = tiny(**{"selection": {"performance_window": 1e3, "rule": rule}})
    run = RunDirectory.create(tmp_path / "run", fleet, resume=False)
    shutil.copytree(finished.path / "cloud", run.cloud)
    cloud = assemble(fleet, load_world(fleet), run, Journal(run.events, None))
    choice = cloud.match(cloud.prepare()[1])[0]
    assert choice.edge == "north"
    losses, energies, sizes = choice.objectives[choice.selection.feasible].T
    chosen = int(np.flatnonzero(choice.selection.feasible == choice.selection.chosen)[0])
    assert len(losses) > 1
    if rule == "literal":
        assert losses[chosen] == losses.min()
    worst = np.abs(choice.objectives).max(axis=0)
    shares = (np.stack([losses, energies, sizes]).T / worst).sum(axis=1)
    assert (shares[chosen] == shares.min()) == (rule == "nearest")


def test_summary_records_how_it_was_chosen(finished: Any) -> None:
    assert finished.summary.selection == finished.fleet.selection
    assert finished.summary.reference.patches == 16
    for cluster in finished.summary.clusters:
        assert all(0 <= candidate.accuracy <= 1 for candidate in cluster.candidates)


def test_explanation_agrees_with_the_run(finished: Any) -> None:
    choices = {choice.device.name: choice for choice in compare_matching(finished.path)}
    for cluster in finished.summary.clusters:
        for name in cluster.device_names:
            found = explain_device(finished.path, name)
            assert cluster.candidates[found.match.chosen].chosen
            front = [c.on_front for c in cluster.candidates]
            assert np.flatnonzero(front).tolist() == found.match.front.tolist()
            assert found.smallest.storage == cluster.storage_limit_bytes
            assert (choices[name].cluster.width, choices[name].cluster.depth) == (
                cluster.width,
                cluster.depth,
            )
            shown = CliRunner().invoke(app, ["explain", str(finished.path), "--device", name])
            assert shown.exit_code == 0, shown.output


# --- a backbone for each device ---------------------------------------------------------------


def _each(tiny: Callable[..., Fleet]) -> Fleet:
    """In the north two devices that fit different candidates, in the south two of one kind."""
    return tiny(
        **{
            "selection": {"matching": "device"},
            "personalization.rounds": 2,
            "clusters": [
                {
                    "name": "north",
                    "devices": [
                        {"name": "cam-1", "storage": "60 kB"},
                        {"name": "badge-0", "storage": "20 kB"},
                        {"name": "cam-2", "storage": "60 kB"},
                    ],
                },
                {
                    "name": "south",
                    "devices": [
                        {"name": "badge-1", "storage": "20 kB"},
                        {"name": "badge-2", "storage": "20 kB"},
                    ],
                },
            ],
        }
    )


def _copy_cloud(source: Path, target: Path, fleet: Fleet) -> Path:
    run = RunDirectory.create(target, fleet, resume=False)
    shutil.copytree(source / "cloud", run.cloud)
    return run.path


@pytest.fixture(scope="module")
def each(finished: Any, tiny: Callable[..., Fleet], tmp_path_factory: Any) -> Any:
    """A run with a backbone for each device, from the tiny fleet's elastic backbone."""
    fleet = _each(tiny)
    path = _copy_cloud(finished.path, tmp_path_factory.mktemp("each") / "run", fleet)
    return path, customize(fleet, path, resume=True)


def test_each_device_gets_what_its_own_limits_allow(each: Any) -> None:
    path, summary = each
    groups = {group.name: group for group in summary.clusters}
    assert {group.edge for group in summary.clusters} == {"north", "south"}
    assert len(groups) == 3
    assert sorted(groups["north:1"].device_names) == ["badge-0"]
    assert sorted(groups["north:2"].device_names) == ["cam-1", "cam-2"]
    assert sorted(groups["south"].device_names) == ["badge-1", "badge-2"]
    small, large = groups["north:1"], groups["north:2"]
    assert (small.width, small.depth) == (groups["south"].width, groups["south"].depth)
    assert (small.width, small.depth) != (large.width, large.depth)
    for choice in compare_matching(path):
        assert (choice.cluster.width, choice.cluster.depth) == (
            choice.alone.width,
            choice.alone.depth,
        )
    for device in summary.devices:
        group = groups[device.cluster]
        model = acme_fleet.load(path / "devices" / device.name)
        assert model.backbone.config.num_hidden_layers == group.depth
        assert device.size_bytes <= device.capacity_bytes
        assert device.name in group.device_names


def test_groups_have_their_own_headers_and_seeds(each: Any) -> None:
    """No group's work decides another's: their searches draw other numbers."""
    path, summary = each
    assert {p.parent.name for p in path.glob("edges/north/*/coarse.safetensors")} == {
        "group-1",
        "group-2",
    }
    assert all(len(group.similarity) == len(group.device_names) for group in summary.clusters)
    page = (path / "report.html").read_text()
    for group in summary.clusters:
        assert group.name in page


def test_profile_tells_limits_and_no_names(each: Any, tiny: Callable[..., Fleet]) -> None:
    path, _ = each
    told = [e for e in event_records(path / "events.jsonl") if e.get("type") == "ClusterProfile"]
    assert {e["from"] for e in told} == {"north", "south"}
    for device in _each(tiny).devices:
        explained = explain_device(path, device.name)
        assert explained.alone.chosen == explained.match.chosen
        shown = CliRunner().invoke(app, ["explain", str(path), "--device", device.name])
        assert shown.exit_code == 0, shown.output


def test_device_is_explained_by_its_own_limits(each: Any) -> None:
    path, _ = each
    found = explain_device(path, "cam-1")
    assert found.cluster.storage_limit_bytes == found.device.storage == found.smallest.storage
    assert found.match.chosen == found.alone.chosen
    energies = [candidate.energy_j for candidate in found.cluster.candidates]
    np.testing.assert_allclose(energies, found.own_energy_j)
    shown = CliRunner().invoke(app, ["explain", str(path), "--device", "cam-1"])
    assert "was matched by its own limits" in " ".join(shown.output.split())


def test_groups_resume_where_they_stopped(
    finished: Any, each: Any, tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: Any
) -> None:
    path, _ = each
    again = _copy_cloud(finished.path, tmp_path / "run", _each(tiny))
    searched: list[str] = []
    search = EdgeServer._coarse_model

    def stop(edge: EdgeServer, assignment: Any, group: Any) -> Any:
        searched.append(group.name)
        if group.name == "north:2":
            raise QuorumError("the power is cut")
        return search(edge, assignment, group)

    monkeypatch.setattr(EdgeServer, "_coarse_model", stop)
    with pytest.raises(QuorumError, match="the power is cut"):
        customize(_each(tiny), again, resume=True)
    monkeypatch.undo()
    assert searched == ["north:1", "south", "north:2"]
    customize(_each(tiny), again, resume=True)
    for device in _each(tiny).devices:
        model = Path("devices", device.name, "model.safetensors")
        assert (again / model).read_bytes() == (path / model).read_bytes()
