"""The report: one self-contained page, whatever the fleet looks like."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from acme_fleet.config.backbone import Selection
from acme_fleet.messages.results import HeaderContender
from acme_fleet.report.intervals import wilson
from acme_fleet.report.overhead import overhead_table
from acme_fleet.report.page.canvas import short
from acme_fleet.report.page.events import link_flows, time_line
from acme_fleet.report.page.html import cluster_colors, effective_peers, header_graph, write_report
from acme_fleet.report.terminal.run import print_summary
from acme_fleet.report.words import bytes_text, duration_text, energy_text
from acme_fleet.runs.events import (
    Event,
    FaultEvent,
    MessageEvent,
    StageEvent,
    duration_s,
    messages_of,
)
from acme_fleet.runs.summary import (
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
    pairs = list(itertools.product((0.25, 0.5, 0.75, 1.0), (1, 3, 6)))
    sizes = [20_000 + int(200_000 * w * d) for w, d in pairs]
    fits = [i for i, size in enumerate(sizes) if size <= limit]
    chosen = max(fits, key=lambda i: sizes[i])
    return [
        Candidate(
            width=w,
            depth=d,
            accuracy=0.2 + 0.4 * w + 0.03 * d,
            loss=2.2 - 0.6 * w - 0.12 * d + 0.05 * ((i * 7) % 5),
            energy_j=0.02 + 0.3 * w * d / 6,
            size_bytes=sizes[i],
            feasible=i in fits,
            on_front=i in fits and (i % 4 != 1 or i == chosen),
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
        contenders=make_contenders(),
        device_names=devices,
        similarity=(raw / raw.sum(1, keepdims=True)).tolist(),
    )


def make_contenders() -> list[HeaderContender]:
    named = {"controller": 0.71, "linear": 0.66, "random": 0.73, "evolution": 0.72, "cnn": 0.64}
    return [
        HeaderContender(
            name=name, params=9_000 + i, accuracy=a, loss=1.5 - a, evaluated=184 * (i in (0, 2))
        )
        for i, (name, a) in enumerate(named.items())
    ]


def make_device(name: str, cluster: ClusterSummary, index: int) -> DeviceSummary:
    chosen = next(c for c in cluster.candidates if c.chosen)
    coarse = 0.45 + 0.07 * ((index * 3) % 5)
    return DeviceSummary(
        name=name,
        cluster=cluster.name,
        capacity_bytes=cluster.storage_limit_bytes + 60_000 * (index % 4),
        size_bytes=chosen.size_bytes - 700 * (index % 3),
        params=chosen.size_bytes // 4,
        accuracy_coarse=coarse,
        accuracy=min(1.0, coarse + 0.04 * (index % 6)),
        accuracy_linear=coarse + 0.03 * (index % 4),
        test_samples=40 + index,
        latency_s=0.0055,
        neurons_coarse=120,
        neurons=90 - index % 90,
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
        reference=ReferenceSummary(params=302_154, patches=16, size_bytes=1_219_184, accuracy=0.61),
        selection=Selection(performance_window=0.125),
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

    def __init__(self, edges: set[str]) -> None:
        self.now, self.events, self.edges = START, list[Event](), edges

    def stage(self, actor: str, name: str, seconds: float, inside: str = "") -> None:
        def add(stage: str, lasted: float) -> None:
            own = {"time": self.now.isoformat(), "stage": stage, "actor": actor, "tier": tier}
            self.events.append(StageEvent.model_validate({**own, "seconds": lasted}))

        tier = "cloud" if actor == "cloud" else "edge" if actor in self.edges else "device"
        add(name, seconds)
        if inside:
            add(inside, seconds * 2)
            self.now += timedelta(seconds=seconds)
        self.now += timedelta(seconds=seconds + 0.01)

    def message(self, sender: str, receiver: str, kind: str, size: int) -> None:
        down = sender == "cloud" or (sender in self.edges and receiver != "cloud")
        self.events.append(
            MessageEvent(
                time=self.now.isoformat(),
                sender=sender,
                receiver=receiver,
                type=kind,
                size_bytes=size,
                occasion=str(len(self.events)),
                tier="cloud" if "cloud" in (sender, receiver) else "device",
                direction="down" if down else "up",
            )
        )

    def exchange(self, one: str, other: str, down: tuple[str, int], up: tuple[str, int]) -> None:
        self.message(one, other, *down)
        self.message(other, one, *up)


def make_events(summary: Summary) -> list[Event]:
    log = Log({cluster.name for cluster in summary.clusters})
    for name, seconds in (("reference", 43.6), ("width-elastic", 7.5), ("elastic", 6.0)):
        log.stage("cloud", name, seconds)
    for cluster in summary.clusters:
        for device in cluster.device_names:
            log.exchange(cluster.name, device, ("ProfileRequest", 64), ("DeviceProfile", 248))
        log.exchange("cloud", cluster.name, ("ProfileRequest", 64), ("ClusterProfile", 528))
    for cluster in summary.clusters:
        size = next(c.size_bytes for c in cluster.candidates if c.chosen)
        log.message("cloud", cluster.name, "BackboneAssignment", size)
        log.stage(cluster.name, "header search", 15.8)
        for device in cluster.device_names:
            log.exchange(
                cluster.name, device, ("HeaderAssignment", size + 40_000), ("FeatureSample", 4224)
            )
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


def delayed(events: list[Event], first: int, by: timedelta) -> list[Event]:
    """The events, those from number ``first`` on that much later."""

    def later(event: Event) -> Event:
        time = datetime.fromisoformat(event.time) + by
        return event.model_copy(update={"time": time.isoformat()})

    return [*events[:first], *map(later, events[first:])]


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def write(path: Path, summary: Summary, events: list[Event] | None = None) -> str:
    write_report(summary, make_events(summary) if events is None else events, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def two() -> Summary:
    return make_summary(3, 3)


@pytest.fixture(scope="module")
def html(two: Summary, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("report") / "report.html", two)


def test_the_page_shows_everything(html: str, two: Summary) -> None:
    page = Page(html)
    for device in two.devices:
        assert device.name in page.text
    for heading in (
        *("Did every device get a model that fits?", "How good are the models?"),
        *("How small and how fast?", "What left the devices?", "Use this model"),
        *("What each device got", "What each cluster could choose from", "Numbers", "Words"),
    ):
        assert heading in page.text
    assert "The performance window γ_p was 0.125" in page.text
    # accuracy, sizes, two links, the time line; for each cluster its front, header and rivals
    assert page.count("svg") == 5 + 2 * 2
    # what ships beside its rivals, devices, the same exactly, stages; similarity and headers
    assert page.count("table") == 4 + 2 * 2


def test_a_cut_hidden_size_is_shown(html: str, two: Summary, tmp_path: Path) -> None:
    assert "<th>hidden</th>" not in html
    assert "of the hidden size" not in html
    first, second = two.clusters
    candidates = [c.model_copy(update={"hidden": 0.75}) for c in first.candidates]
    cut = first.model_copy(update={"hidden": 0.75, "candidates": candidates})
    text = write(tmp_path / "cut.html", two.model_copy(update={"clusters": [cut, second]}))
    page = Page(text)
    assert page.text.count("0.75 of the hidden size") == 1
    assert re.search(r"chosen: w \S+, d \d+, h 0.75", page.text)
    *_, row = re.findall(r"<tr><td[^>]*>dev-0-0</td>(.*?)</tr>", text)
    assert f"<td>{cut.width:g}</td><td>0.75</td><td>{cut.depth}</td>" in row
    assert text.count("<th>hidden</th>") == 1


def test_estimated_losses_are_told(html: str, two: Summary, tmp_path: Path) -> None:
    words = "estimates from a few samples"
    assert words not in html
    first, second = two.clusters
    candidates = [c.model_copy(update={"estimated": not c.on_front}) for c in first.candidates]
    some = two.model_copy(
        update={"clusters": [first.model_copy(update={"candidates": candidates}), second]}
    )
    assert words in write(tmp_path / "some.html", some)


def test_what_else_was_tried_is_shown(html: str, two: Summary) -> None:
    text = re.sub(r"<[^>]+>", " ", html)
    for one in two.clusters[0].contenders:
        assert f"{one.params:,}" in text
    assert text.count("controller (shipped)") == len(two.clusters)
    assert "evolution (shipped)" not in text


def test_what_the_network_engine_cost_is_shown_for_many_hosts_only(
    html: str, two: Summary, tmp_path: Path
) -> None:
    title = "What the network engine cost"
    assert title not in html
    events = make_events(two)
    answers = [n for n, e in enumerate(events) if e.record().get("type") == "RoundReport"]
    # An answer to site-1 comes three minutes later.
    events = delayed(events, answers[-1], timedelta(minutes=3))
    many = two.model_copy(update={"many_hosts": True})
    page = Page(write(tmp_path / "many.html", many, events))
    assert title in page.text
    (row,) = [row for row in overhead_table(many, events) if row.edge == "site-1"]
    asked = sum(m.sender == "site-1" and m.tier == "device" for m in messages_of(events))
    assert (row.questions, row.most_s) == (asked, pytest.approx(180, abs=1))
    assert "3 min" in page.text.replace("\u00a0", " ")


def test_the_page_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert "http" not in html.replace("http-equiv", "")
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "@import" not in html
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_references_meet_them(html: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_colours_follow_the_page(html: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    used, defined = set(re.findall(r"var\(--(\w+)", html)), set(re.findall(r"--(\w+):", html))
    assert used <= defined
    light, dark = html.split("prefers-color-scheme: dark", 1)
    assert set(re.findall(r"--(c\d):", light)) == set(re.findall(r"--(c\d):", dark))


def test_the_same_run_gives_the_same_page(html: str, two: Summary, tmp_path: Path) -> None:
    assert write(tmp_path / "again.html", two) == html


def test_global_style_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    one = make_summary(1)

    with matplotlib.rc_context({"font.size": 31, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        styled = write(tmp_path / "a.html", one)
        assert dict(matplotlib.rcParams) == before
    assert styled == write(tmp_path / "b.html", one)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a&b\"'>", "x" * 90, "$x^2$水🐟"])
def test_names_are_only_text(name: str, tmp_path: Path) -> None:
    summary = make_summary(2)
    cluster, (first, second) = summary.clusters[0], summary.devices
    update = {"device_names": [name, second.name], "name": name + "!", "header": name}
    clusters = [cluster.model_copy(update={**update, "lost": {name + "?": name}})]
    devices = [
        first.model_copy(update={"name": name, "cluster": name + "!"}),
        second.model_copy(update={"cluster": name + "!"}),
    ]
    hostile = summary.model_copy(update={"clusters": clusters, "devices": devices, "name": name})
    events = [
        e.model_copy(update={"stage": name}) if isinstance(e, StageEvent) else e
        for e in make_events(hostile)
    ]
    events.append(
        FaultEvent(time=START.isoformat(), fault=name, actor=name, tier="edge", about=name)
    )
    html = write(tmp_path / "report.html", hostile, events)
    page = Page(html)
    assert name in page.text
    assert page.count("script") == 1
    (own,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


@pytest.mark.parametrize(
    ("sizes", "recorded"), [((1,), True), ((1,), False), ((50,), True), ((1, 2, 1), True)]
)
def test_any_fleet(sizes: tuple[int, ...], recorded: bool, tmp_path: Path) -> None:
    summary = make_summary(*sizes, blocks=4)
    page = Page(write(tmp_path / "report.html", summary, None if recorded else []))
    assert page.count("svg") == 2 + 2 * len(sizes) + 3 * recorded
    assert ("No messages were recorded" in page.text) is not recorded
    assert "nan" not in page.text


def test_every_cluster_has_a_colour() -> None:
    colors = cluster_colors(make_summary(*[1] * 5), ["red", "green", "blue"])
    assert list(colors.values()) == ["red", "green", "blue", "red", "green"]
    assert list(colors) == [f"site-{n}" for n in range(5)]


def test_a_poor_run(tmp_path: Path) -> None:
    summary = make_summary(2, 1)
    lost = summary.clusters[0].model_copy(
        update={
            "genotype": {"cells": 1},
            "similarity": [],
            "candidates": [],
            "lost": {"dev-0-0": "no answer before the deadline", "dev-0-1": "gone"},
        }
    )
    update = {"clusters": [lost, summary.clusters[1]], "devices": summary.devices[2:]}
    poor = summary.model_copy(update=update)
    page = Page(write(tmp_path / "report.html", poor, make_events(summary)))
    assert "no answer before the deadline" in page.text
    nobody = poor.model_copy(update={"devices": [], "seconds": {}})
    assert "No device finished" in Page(write(tmp_path / "nobody.html", nobody, [])).text


def test_extreme_numbers(tmp_path: Path) -> None:
    summary = make_summary(2)
    update = {"capacity_bytes": 8 * 10**9, "accuracy": 1.0, "accuracy_coarse": 1.0}
    devices = [device.model_copy(update=update) for device in summary.devices]
    candidates = [c.model_copy(update={"energy_j": 0.0}) for c in summary.clusters[0].candidates]
    cluster = summary.clusters[0].model_copy(
        update={"storage_limit_bytes": 8 * 10**9, "candidates": candidates}
    )
    extreme = summary.model_copy(update={"clusters": [cluster], "devices": devices})
    assert "8 GB →" in Page(write(tmp_path / "report.html", extreme)).text


def test_a_night_between_two_starts_is_left_out(two: Summary) -> None:
    events = make_events(two)
    line = time_line(two, events)
    assert line is not None
    assert not line.pauses
    busy = time_line(two, delayed(events, len(events) // 2, timedelta(seconds=55)))
    assert busy is not None
    assert not busy.pauses  # a device unpacks a large backbone, and records nothing
    resumed = time_line(two, delayed(events, len(events) // 2, timedelta(hours=9)))
    assert resumed is not None
    assert [round(seconds / 3600) for _, seconds in resumed.pauses] == [9]
    assert resumed.end == pytest.approx(line.end, abs=0.1)
    assert duration_s(events) == pytest.approx(line.end)
    assert duration_s([]) == 0


def test_one_duration_in_terminal_and_page(
    two: Summary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the clock, and not the sum of what works at once."""
    clocked = two.model_copy(update={"took_s": 4325.2})
    print_summary(clocked)
    assert "; 1 h 12 min" in capsys.readouterr().out
    assert "The run took 1 h 12 min" in Page(write(tmp_path / "report.html", clocked)).text


def test_rows_of_the_time_line(two: Summary) -> None:
    line = time_line(two, make_events(two))
    assert line is not None
    names = ["cloud", "site-0", *two.clusters[0].device_names, "site-1"]
    assert [name for name, _ in line.actors][:6] == names
    stage = next(stage for stage in line.stages if stage[1] == "reference")
    assert stage == (0, "reference", 0.0, 43.6)


def test_link_flows_count_every_byte(two: Summary) -> None:
    events = make_events(two)
    flows = link_flows(events)
    assert sum(f.size_bytes for f in flows) == sum(
        message.size_bytes for message in messages_of(events)
    )
    assert {f.cluster for f in flows} == {"site-0", "site-1"}
    up = {(f.tier, f.kind) for f in flows if f.up}
    assert {("cloud", "ClusterReport"), ("device", "FeatureSample")} <= up
    assert {("cloud", "BackboneAssignment"), ("device", "HeaderAssignment")}.isdisjoint(up)


@pytest.mark.parametrize("seed", range(20))
def test_wires_run_around_the_boxes(seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = header_graph(make_genotype(int(random.integers(1, 7)), random))
    assert graph is not None
    solid = [box[1:5] for box in graph.boxes if box[0] in ("block", "source", "tail", "upright")]
    for x, y, width, height in solid:
        assert x >= 0
        assert x + width <= graph.width
        assert y >= 0
        assert y + height <= graph.height
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(solid, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
    for _, path in graph.wires:
        for start, stop in itertools.pairwise(corners(path)):
            for x, y, width, height in solid:
                left, right = sorted((start[0], stop[0]))
                top, bottom = sorted((start[1], stop[1]))
                within = left < x + width and right > x and top < y + height and bottom > y
                # A wire ends at an operation, four units inside its block.
                assert not within or (stop[0] == x + 4 and start[0] < x)


def corners(path: str) -> list[tuple[float, float]]:
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", path).groups())  # type: ignore[union-attr]
    points = [(x, y)]
    for axis, value in re.findall(r"([HV])([\d.]+)", path):
        x, y = (float(value), y) if axis == "H" else (x, float(value))
        points.append((x, y))
    return points


@pytest.mark.parametrize("genotype", [{}, {"blocks": [{"inputs": [0]}]}, {"blocks": 3}])
def test_an_unknown_genotype_has_no_drawing(genotype: dict[str, object]) -> None:
    assert header_graph(genotype) is None


@pytest.mark.parametrize(("hits", "samples"), [(0, 5), (5, 5), (41, 45), (500, 1000)])
def test_wilson_against_scipy(hits: int, samples: int) -> None:
    interval = binomtest(hits, samples).proportion_ci(method="wilson")
    assert wilson(hits / samples, samples) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_words() -> None:
    sizes = (0, 999, 999.7, 412_300, 999_600, 1_219_184, 8e9, 5e15)
    expected = ["0 B", "999 B", "1 kB", "412 kB", "1 MB", "1.22 MB", "8 GB", "5000 TB"]
    assert [bytes_text(size) for size in sizes] == expected
    times = (0.17, 43.6, 59.97, 114, 3600, 7500)
    expected = ["0.17 s", "43.6 s", "1 min", "1 min 54 s", "1 h", "2 h 5 min"]
    assert [duration_text(seconds) for seconds in times] == expected
    assert [energy_text(e) for e in (0.0, 0.0592, 0.31, 12, 2500)] == [
        *("0 mJ", "59 mJ", "0.31 J", "12 J", "2500 J")
    ]
    assert short("cam-1") == "cam-1"
    assert short("factory-hall-nine-cam-12") == "factory-ha…ine-cam-12"
    assert effective_peers([[1.0, 0.0], [0.5, 0.5]]) == 1.5
