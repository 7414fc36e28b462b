"""Overhead of the engine: the time between question and answer in which nobody computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from acme_fleet.runs.events import Event, MessageEvent, StageEvent
from acme_fleet.runs.summary import Summary


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


def overheads_s(events: Sequence[Event]) -> dict[tuple[str, str], list[float]]:
    """Seconds of each question to a device, less the stages that the device recorded for it.

    Args:
        events: a run's events.

    Returns:
        By edge and device, in the order of the questions; a question that was asked again counts
        from the first time.
    """
    asked: dict[tuple[str, str], float] = {}
    computed: defaultdict[str, float] = defaultdict(float)
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.at_s):
        match event:
            case StageEvent():
                computed[event.actor] += event.seconds
            case MessageEvent(tier="device", direction="down"):
                pair = (event.sender, event.receiver)
                if pair not in asked:
                    asked[pair], computed[event.receiver] = event.at_s, 0.0
            case MessageEvent(tier="device", direction="up"):
                pair = (event.receiver, event.sender)
                if pair in asked:
                    seconds = event.at_s - asked.pop(pair) - computed[event.sender]
                    found[pair].append(max(0.0, seconds))
    return dict(found)


def overhead_table(summary: Summary, events: Sequence[Event]) -> list[Overhead]:
    """A row for each edge server; none if the run was all in one process, which has no engine."""
    edges = [cluster.edge for cluster in summary.clusters] if summary.many_hosts else []
    found = overheads_s(events) if edges else {}
    table = []
    for edge in dict.fromkeys(edges):
        devices = {device: each for (owner, device), each in found.items() if owner == edge}
        if every := [seconds for each in devices.values() for seconds in each]:
            slowest = max(devices, key=lambda device: median(devices[device]))
            longest = median(devices[slowest])
            table.append(Overhead(edge, len(every), median(every), max(every), slowest, longest))
    return table


def overhead_text(events: Sequence[Event]) -> str:
    """A line for the terminal."""
    each = [seconds for pair in overheads_s(events).values() for seconds in pair]
    if not each:
        return "engine: no device was asked anything"
    return (
        f"engine: {median(each):.1f} s for a question to a device and its answer (median of "
        f"{len(each)}, at most {max(each):.1f} s), so {2 * median(each):.1f} s a round"
    )
