"""The choice of a backbone in a run: by the rule that is set, recorded, explained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.data.partition import load_world
from acme_fleet.explain import compare_matching, explain_device
from acme_fleet.fleet import Fleet
from acme_fleet.journal import Journal
from acme_fleet.pipeline import assemble
from acme_fleet.run_directory import RunDirectory


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
