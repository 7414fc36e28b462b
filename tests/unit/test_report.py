"""The report: one self-contained page, whatever the fleet looks like."""

from __future__ import annotations

import copy
import itertools
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from acme_fleet.report.html import header_graph, time_line, write_report
from acme_fleet.report.plots import bytes_text, duration_text, short, wilson
from acme_fleet.report.summary import (
    Candidate,
    ClusterSummary,
    DeviceSummary,
    ReferenceSummary,
    Summary,
    Traffic,
)

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OPERATIONS = ("conv1", "conv3", "conv5", "identity", "downsample", "avg_pool", "max_pool")
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col"}


def make_candidates(limit: int) -> list[Candidate]:
    pairs = list(itertools.product((0.25, 0.5, 0.75, 1.0), range(1, 7)))
    sizes = [20_000 + int(200_000 * w * d) for w, d in pairs]
    fits = [i for i, size in enumerate(sizes) if size <= limit]
    chosen = max(fits, key=lambda i: sizes[i])
    return [
        Candidate(
            width=w,
            depth=d,
            loss=2.2 - 0.6 * w - 0.12 * d + 0.05 * ((i * 7) % 5),
            energy_j=0.02 + 0.3 * w * d / 6,
            size_bytes=sizes[i],
            feasible=i in fits,
            on_front=i in fits and i % 4 != 1,
            chosen=i == chosen,
        )
        for i, (w, d) in enumerate(pairs)
    ]


def make_genotype(blocks: int, random: np.random.Generator, cells: int = 1) -> dict[str, object]:
    return {
        "blocks": [
            {
                "inputs": random.integers(0, b + 2, 2).tolist(),
                "operations": [str(random.choice(OPERATIONS)) for _ in range(2)],
            }
            for b in range(blocks)
        ],
        "cells": cells,
        "channels": 24,
    }


def make_cluster(name: str, devices: list[str], limit: int, blocks: int = 2) -> ClusterSummary:
    random = np.random.default_rng(len(devices) + blocks)
    candidates = make_candidates(limit)
    chosen = next(c for c in candidates if c.chosen)
    raw = np.exp(2 * random.normal(size=(len(devices), len(devices))) + 3 * np.eye(len(devices)))
    return ClusterSummary(
        name=name,
        width=chosen.width,
        depth=chosen.depth,
        storage_limit_bytes=limit,
        candidates=candidates,
        feasible=sum(c.feasible for c in candidates),
        front=sum(c.on_front for c in candidates),
        header="[conv3(last) + identity(penultimate)] × 1 cell of 24 channels",
        genotype=make_genotype(blocks, random),
        device_names=devices,
        similarity=(raw / raw.sum(1, keepdims=True)).tolist(),
    )


def make_device(name: str, cluster: ClusterSummary, index: int) -> DeviceSummary:
    chosen = next(c for c in cluster.candidates if c.chosen)
    coarse = 0.45 + 0.07 * ((index * 3) % 5)
    return DeviceSummary(
        name=name,
        cluster=cluster.name,
        capacity_bytes=cluster.storage_limit_bytes + 60_000 * (index % 4),
        size_bytes=chosen.size_bytes + 700 * (index % 3),
        params=chosen.size_bytes // 4,
        accuracy_coarse=coarse,
        accuracy=min(1.0, coarse + 0.04 * (index % 6)),
        accuracy_linear=coarse + 0.03 * (index % 4),
        test_samples=40 + index,
        latency_s=0.0055,
        neurons_coarse=120,
        neurons=90 - index,
        raw_data_bytes=71_680,
    )


def make_summary(*sizes: int, blocks: int = 2) -> Summary:
    """A fleet with one cluster for each of ``sizes``, which say how many devices it has."""
    clusters, devices = [], []
    for number, size in enumerate(sizes):
        names = [f"dev-{number}-{i}" for i in range(size)]
        cluster = make_cluster(f"site-{number}", names, 320_000 * (number + 1), blocks)
        clusters.append(cluster)
        devices += [make_device(name, cluster, i) for i, name in enumerate(names)]
    raw = sum(device.raw_data_bytes for device in devices)
    up = 7_500 * len(devices)
    return Summary(
        name="farm",
        seed=3,
        seconds={"reference": 43.6, "header search": 25.0, "round 1": 0.8, "final model": 2.7},
        reference=ReferenceSummary(params=302_154, size_bytes=1_219_184, accuracy=0.61),
        clusters=clusters,
        devices=devices,
        traffic=Traffic(
            cloud_edge_bytes=900_000,
            edge_device_bytes=3_000_000,
            up_bytes=up + 3_000,
            down_bytes=3_800_000,
            device_up_bytes=up,
            raw_data_bytes=raw,
            upload_ratio=up / raw,
        ),
    )


class Log:
    """Writes events as a run does, with a clock of its own."""

    def __init__(self) -> None:
        self.now, self.events = START, list[dict[str, Any]]()

    def stage(self, actor: str, name: str, seconds: float, inside: str = "") -> None:
        event = {"time": self.now.isoformat(), "actor": actor, "seconds": seconds}
        self.events.append({**event, "stage": name})
        if inside:
            self.events.append({**event, "stage": inside, "seconds": seconds * 2})
            self.now += timedelta(seconds=seconds)
        self.now += timedelta(seconds=seconds + 0.01)

    def message(self, sender: str, receiver: str, kind: str, size: int) -> None:
        event = {"time": self.now.isoformat(), "from": sender, "to": receiver, "type": kind}
        self.events.append({**event, "bytes": size})

    def exchange(self, one: str, other: str, down: tuple[str, int], up: tuple[str, int]) -> None:
        self.message(one, other, *down)
        self.message(other, one, *up)


def make_events(summary: Summary) -> list[dict[str, Any]]:
    log = Log()
    for name, seconds in (("reference", 43.6), ("width-elastic", 7.5), ("elastic", 6.0)):
        log.stage("cloud", name, seconds)
    for cluster in summary.clusters:
        for device in cluster.device_names:
            log.exchange(cluster.name, device, ("ProfileRequest", 64), ("DeviceProfile", 248))
        log.exchange("cloud", cluster.name, ("ProfileRequest", 64), ("ClusterProfile", 528))
    for cluster in summary.clusters:
        log.message("cloud", cluster.name, "BackboneAssignment", 625_224)
        log.stage(cluster.name, "header search", 15.8)
        for device in cluster.device_names:
            log.exchange(cluster.name, device, ("HeaderAssignment", 665_664), ("FeatureSample", 4224))
        log.stage(cluster.name, "similarity", 0.003)
        for number in range(3):
            for device in cluster.device_names:
                log.message(cluster.name, device, "RoundStart", 72)
                log.stage(device, f"round {number + 1}", 0.17)
                log.message(device, cluster.name, "ImportanceUpload", 992)
            for device in cluster.device_names:
                log.exchange(cluster.name, device, ("ImportanceUpdate", 992), ("RoundReport", 88))
        for device in cluster.device_names:
            log.message(cluster.name, device, "ReportRequest", 64)
            log.stage(device, "round 4", 0.2, inside="final model")
            log.message(device, cluster.name, "DeviceReport", 420)
        log.message(cluster.name, "cloud", "ClusterReport", 1900)
    return log.events
