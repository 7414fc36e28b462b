"""A fleet's run as it stands, from its events: one JSON object that the live page draws."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

from acme_fleet.config.fleet import Fleet
from acme_fleet.runs.events import (
    VALIDATION,
    Event,
    FaultEvent,
    FigureEvent,
    MessageEvent,
    StageEvent,
)

_LATEST, _FAULTS = 30, 50
_BINS, _TICK_S = 60, 0.1
_MOST_DEVICES = 500
_MOST_STEPS = 200


class FleetState:
    """Adds up the events of one run. Bytes are those of all messages, with what was sent again."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._began: float | None = None
        self._last = 0.0
        self._sizes: Counter[tuple[str, str, str]] = Counter()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._flow: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._stages: dict[str, list[float]] = {}
        self._rewards: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._scores: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._done: dict[str, str] = {}
        self._faults: deque[dict[str, Any]] = deque(maxlen=_FAULTS)
        self._faulty = 0
        self._latest: deque[dict[str, Any]] = deque(maxlen=_LATEST)

    def add(self, events: Iterable[Event]) -> None:
        """Take further events, in the order in which they were written."""
        for event in events:
            end = event.at_s + (event.seconds if isinstance(event, StageEvent) else 0.0)
            self._began = min(self._began or event.at_s, event.at_s)
            self._last = max(self._last, end)
            match event:
                case StageEvent():
                    self._stages.setdefault(event.stage, []).append(event.seconds)
                    self._done[event.actor] = event.stage
                    told = f"{event.actor}: {event.stage} done in {event.seconds:.1f} s"
                    self._tell(event.time, "stage", told)
                case MessageEvent():
                    key = event.tier, event.direction, event.type
                    self._sizes[key] += event.size_bytes
                    self._counts[key] += 1
                    self._flow[event.tier][int(event.at_s / _TICK_S)] += event.size_bytes
                    told = f"{event.sender} → {event.receiver}: {event.type}"
                    self._tell(event.time, "message", told, event.size_bytes)
                case FaultEvent():
                    self._faulty += 1
                    about = {"about": event.about, "actor": event.actor, "fault": event.fault}
                    self._faults.append({"time": event.time, **about})
                    self._tell(event.time, "fault", f"{event.about}: {event.fault}")
                case FigureEvent(figure=name) if name == VALIDATION:
                    self._scores[event.actor][event.step] = event.value
                case FigureEvent(tier="edge"):
                    self._rewards[event.actor][event.step] = event.value
                case _:  # a figure of an added stage, which has no picture
                    pass

    def shown(
        self, choices: list[dict[str, Any]], summary: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The object.

        Args:
            choices: the content of ``choices.json``.
            summary: the content of ``summary.json`` once the run is finished.
        """
        results = {each["name"]: each for each in (summary or {}).get("devices", [])}
        clusters = (summary or {}).get("clusters", [])
        lost = {name: why for each in clusters for name, why in each.get("lost", {}).items()}
        devices = [
            self._device(name, cluster, storage, results.get(name), lost.get(name))
            for cluster, name, storage in self._members()
        ]
        return {
            "name": self._fleet.name,
            "seed": self._fleet.seed,
            "rounds": self._fleet.personalization.rounds,
            "began_s": self._began,
            "elapsed_s": self._last - self._began if self._began else 0.0,
            "edges": [
                {"name": c.name, "devices": len(c.devices), "at": self._done.get(c.name)}
                for c in self._fleet.clusters
            ],
            "devices": devices[:_MOST_DEVICES],
            "device_count": len(devices),
            "links": {tier: self._link(tier) for tier in ("cloud", "device")},
            "stages": [
                {"stage": name, "times": len(times), "seconds": sum(times)}
                for name, times in self._stages.items()
            ],
            "rewards": {name: _thinned(steps) for name, steps in self._rewards.items()},
            "choices": [_choice(each) for each in choices],
            "faults": list(self._faults),
            "fault_count": self._faulty,
            "latest": list(self._latest),
            "result": None if summary is None else _result(summary),
        }

    def _members(self) -> list[tuple[str, str, int]]:
        return [(c.name, d.name, d.storage) for c in self._fleet.clusters for d in c.devices]

    def _device(
        self,
        name: str,
        cluster: str,
        storage: int,
        result: Mapping[str, Any] | None,
        lost: str | None,
    ) -> dict[str, Any]:
        scores = self._scores[name]
        told = {key: (result or {}).get(key) for key in ("accuracy", "size_bytes")}
        return {
            "name": name,
            "cluster": cluster,
            "limit_bytes": storage,
            "at": self._done.get(name),
            "scores": [[step, scores[step]] for step in sorted(scores)],
            **told,
            "lost": lost,
        }

    def _link(self, tier: str) -> dict[str, Any]:
        kinds = [
            {"type": kind, "up": way == "up", "messages": self._counts[key], "bytes": size}
            for key, size in self._sizes.items()
            for own, way, kind in [key]
            if own == tier
        ]
        return {"kinds": kinds, "flow": self._bins(tier)}

    def _bins(self, tier: str) -> list[int]:
        """Bytes in equal parts of the time until now."""
        if not self._began:
            return []
        found = [0] * _BINS
        width = max(self._last - self._began, _TICK_S) / _BINS
        for tick, size in self._flow[tier].items():
            place = int((tick * _TICK_S - self._began) / width)
            found[max(0, min(_BINS - 1, place))] += size
        return found

    def _tell(self, time: str, kind: str, text: str, size: int | None = None) -> None:
        self._latest.append({"time": time, "kind": kind, "text": text, "bytes": size})


def _thinned(steps: Mapping[int, float]) -> list[list[float]]:
    """Points of a line, few enough to draw; the last one stays."""
    order = sorted(steps)
    every = -(-len(order) // _MOST_STEPS) or 1
    return [[step, steps[step]] for step in order if (order[-1] - step) % every == 0]


def _choice(told: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("size_bytes", "loss", "energy_j", "feasible", "on_front", "chosen")
    shape = ("width", "depth", "hidden", "precision")
    return {
        "edge": told["edge"],
        "limit_bytes": told["storage_limit_bytes"],
        "candidates": [{key: one[key] for key in keys + shape} for one in told["candidates"]],
    }


def _result(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers that a finished run is known by."""
    devices = summary.get("devices", [])
    accuracies = [device["accuracy"] for device in devices]
    sizes = [device["size_bytes"] for device in devices]
    return {
        "devices": len(devices),
        "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "smallest": min(sizes, default=None),
        "largest": max(sizes, default=None),
        "reference_bytes": summary.get("reference", {}).get("size_bytes"),
        "warnings": summary.get("warnings", [])[:10],
    }
