"""Events of a run as tables: bytes on each link, and the stages of each role over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from acme_fleet.runs.journal import method_and_resent
from acme_fleet.runs.summary import Summary

Event = Mapping[str, Any]


def stage_table(summary: Summary, events: Sequence[Event]) -> list[tuple[str, str, int, float]]:
    """Stage, who ran it, how often, seconds in all."""
    actors: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        if "stage" in event:
            actors[event["stage"]].append(str(event["actor"]))
    tiers = {"cloud": "cloud"} | {cluster.name: "edge server" for cluster in summary.clusters}
    table = []
    for stage, seconds in summary.seconds.items():
        ran = actors[stage]
        kinds = dict.fromkeys(tiers.get(actor, "device") for actor in ran)
        table.append((stage, ", ".join(kinds), len(ran), seconds))
    return table


@dataclass(frozen=True)
class Flow:
    """All messages of one type in one direction between a cluster's edge server and a tier."""

    tier: str
    up: bool
    kind: str
    cluster: str
    size_bytes: int
    messages: int


def link_flows(summary: Summary, events: Sequence[Event]) -> list[Flow]:
    """The method's bytes by link and message type, in the order in which they were sent.

    ``tier`` is ``cloud`` or ``device``: the other end of the edge server's link. Up is towards
    the cloud.
    """
    edges = {cluster.edge for cluster in summary.clusters}
    sizes: defaultdict[tuple[str, bool, str, str], list[int]] = defaultdict(list)
    for event in method_and_resent(events)[0]:
        sender, receiver = str(event["from"]), str(event["to"])
        with_cloud = "cloud" in (sender, receiver)
        up = receiver == "cloud" if with_cloud else sender not in edges
        edge = sender if up == with_cloud else receiver
        tier = "cloud" if with_cloud else "device"
        sizes[tier, up, str(event["type"]), edge].append(int(event["bytes"]))
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

    A time in which nothing was recorded, longer than a tenth of the rest, is left out: between
    an interrupted run and its resumption there may be a night.
    """
    events = [event for event in events if "stage" in event or "bytes" in event]
    spans = sorted((_moment(e), _moment(e) + float(e.get("seconds", 0))) for e in events)
    if not spans:
        return None
    begin = reach = spans[0][0]
    gaps: list[tuple[float, float]] = []
    for start, stop in spans:
        if start > reach:
            gaps.append((reach, start))
        reach = max(reach, stop)
    busy = reach - begin - sum(stop - start for start, stop in gaps)
    gaps = [gap for gap in gaps if gap[1] - gap[0] > max(2.0, 0.1 * busy)]

    def place(time: float) -> float:
        return time - begin - sum(max(0.0, min(time, stop) - start) for start, stop in gaps)

    actors = _actors(summary, [str(e.get("actor", e.get("from"))) for e in events])
    row = {name: number for number, (name, _) in enumerate(actors)}
    stages = [
        (row[str(e["actor"])], str(e["stage"]), place(_moment(e)), float(e["seconds"]))
        for e in events
        if "stage" in e
    ]
    return TimeLine(
        actors=actors,
        stages=sorted(stages, key=lambda stage: -stage[3]),
        messages=[(row[str(e["from"])], place(_moment(e))) for e in events if "bytes" in e],
        pauses=[(place(start), stop - start) for start, stop in gaps],
        end=place(reach),
    )


def _moment(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


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
