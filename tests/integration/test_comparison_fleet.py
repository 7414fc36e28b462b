"""A whole fleet whose header was made by hand, because a search had nothing to gain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acme_fleet.config.fleet import Fleet
from acme_fleet.edge import comparison
from acme_fleet.messages.header_plan import BY_HAND
from acme_fleet.pipeline import customize
from tiny_fleet import SHORT


def test_a_fleet_without_a_search(
    tmp_path: Path, tiny: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "gains", lambda *_: False)
    fleet = tiny(**SHORT | {"search.when": "useful", "search.rivals": True})
    summary = customize(fleet, tmp_path / "run")
    assert len(summary.devices) == 4
    for cluster in summary.clusters:
        names = [one.name for one in cluster.contenders]
        assert names[0] in BY_HAND
        assert not any(one.evaluated for one in cluster.contenders)
        assert {"random", "evolution", "controller"}.isdisjoint(names)
        words = f"Made by hand ({names[0]}), no search"
        assert words in (tmp_path / "run" / "report.html").read_text()
