"""The lines of ``events.jsonl`` as the JSON objects that they are, for tests of what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acme_fleet.runs.journal import read_events


def event_records(path: Path) -> list[dict[str, Any]]:
    """The undamaged lines of a journal, oldest first."""
    return [event.record() for event in read_events(path)]
