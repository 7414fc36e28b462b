"""Events of a run as tables: bytes on each link, and the stages of each role over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from acme_fleet.runs.events import (
    Event,
    LinkTier,
    messages_of,
    method_and_resent,
    stages_of,
    worked,
)
from acme_fleet.runs.summary import Summary

_TIERS = {"edge": "edge server"}  # in words, where the event's own would not do


def stage_table(summary: Summary, events: Sequence[Event]) -> list[tuple[str, str, int, float]]:
    """Stage, who ran it, how often, seconds in all."""
    tiers: defaultdict[str, list[str]] = defaultdict(list)
    for event in stages_of(events):
        tiers[event.stage].append(_TIERS.get(event.tier, event.tier))
    table = []
    for stage, seconds in summary.seconds.items():
        ran = tiers[stage]
        kinds = dict.fromkeys(ran)
        table.append((stage, ", ".join(kinds), len(ran), seconds))
    return table


@dataclass(frozen=True)
class Flow:
    """All messages of one type in one direction between a cluster's edge server and a tier."""

    tier: LinkTier
    up: bool
    kind: str
    cluster: str
    size_bytes: int
    messages: int


def link_flows(events: Sequence[Event]) -> list[Flow]:
    """The method's bytes by link and message type, in the order in which they were sent.

    ``tier`` is ``cloud`` or ``device``: the other end of the edge server's link. Up is towards
    the cloud.
    """
    sizes: defaultdict[tuple[LinkTier, bool, str, str], list[int]] = defaultdict(list)
    for event in method_and_resent(events)[0]:
        key = (event.tier, event.direction == "up", event.type, event.edge)
        sizes[key].append(event.size_bytes)
    return [Flow(*key, sum(found), len(found)) for key, found in sizes.items()]


@dataclass(frozen=True)
class TimeLine:
    """Stages of each role. Times are seconds since the first event, without long pauses.

    Attributes:
        actors: name and cluster of each row; the cloud has no cluster.
        stages: row, name, start, seconds; the longest first.
        messages: the sender's row, time.
        pauses: time, seconds that were left out there.
        end: end of the last event.
    """

    actors: list[tuple[str, str]]
    stages: list[tuple[int, str, float, float]]
    messages: list[tuple[int, float]]
    pauses: list[tuple[float, float]]
    end: float


def time_line(summary: Summary, events: Sequence[Event]) -> TimeLine | None:
    """Order the events by actor and time; none if there are no events.

    Pauses are left out, see :func:`acme_fleet.runs.events.worked`.
    """
    ran, sent = stages_of(events), messages_of(events)
    span, gaps = worked(events)
    if span is None:
        return None
    begin, reach = span

    def place(time: float) -> float:
        return time - begin - sum(max(0.0, min(time, stop) - start) for start, stop in gaps)

    actors = _actors(summary, [e.actor for e in ran] + [e.sender for e in sent])
    row = {name: number for number, (name, _) in enumerate(actors)}
    stages = [(row[e.actor], e.stage, place(e.at_s), e.seconds) for e in ran]
    return TimeLine(
        actors=actors,
        stages=sorted(stages, key=lambda stage: -stage[3]),
        messages=[(row[e.sender], place(e.at_s)) for e in sent],
        pauses=[(place(start), stop - start) for start, stop in gaps],
        end=place(reach),
    )


def _actors(summary: Summary, seen: Sequence[str]) -> list[tuple[str, str]]:
    """The rows: the cloud, each cluster followed by its devices, then whoever is left."""
    known = {"cloud": ""}
    for cluster in summary.clusters:
        reported = [d.name for d in summary.devices if d.cluster == cluster.name]
        known.setdefault(cluster.edge, cluster.edge)
        members = [cluster.name, *cluster.device_names, *reported, *cluster.lost]
        known |= dict.fromkeys(members, cluster.name)
    known |= {name: "" for name in seen if name not in known}
    return [(name, cluster) for name, cluster in known.items() if name in set(seen)]
