"""Overhead of the engine: the time between question and answer in which nobody computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any, NamedTuple

from acme_fleet.runs.summary import Summary

Event = Mapping[str, Any]


class Overhead(NamedTuple):
    """The engine's seconds for a question of one edge server to a device, and its answer.

    ``slowest`` is the device with the largest median, which is ``slowest_s``.
    """

    edge: str
    questions: int
    median_s: float
    most_s: float
    slowest: str
    slowest_s: float


def overheads_s(events: Sequence[Event], edges: set[str]) -> dict[tuple[str, str], list[float]]:
    """Seconds of each question to a device, less the stages that the device recorded for it.

    Args:
        events: a run's events.
        edges: the edge servers' names.

    Returns:
        By edge and device, in the order of the questions; a question that was asked again counts
        from the first time.
    """
    asked: dict[tuple[str, str], float] = {}
    computed: defaultdict[str, float] = defaultdict(float)
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in sorted(events, key=_at):
        if "stage" in event:
            computed[event["actor"]] += event["seconds"]
        elif event["from"] in edges and event["to"] != "cloud":
            pair = (event["from"], event["to"])
            if pair not in asked:
                asked[pair], computed[event["to"]] = _at(event), 0.0
        elif event["to"] in edges and (pair := (event["to"], event["from"])) in asked:
            seconds = _at(event) - asked.pop(pair) - computed[event["from"]]
            found[pair].append(max(0.0, seconds))
    return dict(found)


def overhead_table(summary: Summary, events: Sequence[Event]) -> list[Overhead]:
    """A row for each edge server; none if the run was all in one process, which has no engine."""
    edges = [cluster.edge for cluster in summary.clusters] if summary.many_hosts else []
    found = overheads_s(events, set(edges))
    table = []
    for edge in dict.fromkeys(edges):
        devices = {device: each for (owner, device), each in found.items() if owner == edge}
        if every := [seconds for each in devices.values() for seconds in each]:
            slowest = max(devices, key=lambda device: median(devices[device]))
            longest = median(devices[slowest])
            table.append(Overhead(edge, len(every), median(every), max(every), slowest, longest))
    return table


def overhead_text(events: Sequence[Event], edges: set[str]) -> str:
    """A line for the terminal."""
    each = [seconds for pair in overheads_s(events, edges).values() for seconds in pair]
    if not each:
        return "engine: no device was asked anything"
    return (
        f"engine: {median(each):.1f} s for a question to a device and its answer (median of "
        f"{len(each)}, at most {max(each):.1f} s), so {2 * median(each):.1f} s a round"
    )


def _at(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()
