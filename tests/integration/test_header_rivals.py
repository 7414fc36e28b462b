"""Headers trained without neighbours and by FedAvg: as in a fleet whose settings make it do so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acme_fleet.pipeline import customize
from acme_fleet.runs.journal import read_events
from tiny_fleet import SHORT, tiny

_UNPRUNED = {"personalization.prune_share": 0.0}


@pytest.mark.parametrize(
    ("changes", "rival", "other"),
    [
        # Where nothing is pruned or mixed, a fleet has settled after its first round.
        ({"personalization.rounds": 1}, "alone", "FedAvg"),
        (
            {"personalization.mix": "weights", "personalization.similarity": "none"},
            "FedAvg",
            "alone",
        ),
    ],
)
def test_a_rival_is_the_fleet_that_trains_as_it_does(
    tmp_path: Path, changes: dict[str, Any], rival: str, other: str
):
    beside = {"personalization.rivals": True, "personalization.rounds": 2}
    fleet = tiny(**{**SHORT, **_UNPRUNED, **beside, **changes})
    summary = customize(fleet, tmp_path / "run")
    rows = [(device.accuracy, device.rivals) for device in summary.devices]
    assert [own for own, _ in rows] == pytest.approx([of[rival].accuracy for _, of in rows])
    assert [own for own, _ in rows] != pytest.approx([of[other].accuracy for _, of in rows])
    for device in summary.devices:
        assert device.rivals[rival].size_bytes == device.size_bytes
        assert device.rivals[rival].loss is None
    # Found again, not trained again.
    (tmp_path / "run" / "summary.json").unlink()
    again = customize(fleet, tmp_path / "run", resume=True)
    assert [device.rivals for device in again.devices] == [of for _, of in rows]
    stages = [e for e in read_events(tmp_path / "run" / "events.jsonl") if "alone" in str(e)]
    assert len(stages) == 2
