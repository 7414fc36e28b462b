"""Devices fail and lie; a run goes on with those who are left, or says why it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import acme_fleet
from acme_fleet import pipeline
from acme_fleet.cli import app
from acme_fleet.config.devices import Energy
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import distribute
from acme_fleet.device import client
from acme_fleet.device.client import DeviceClient
from acme_fleet.edge import server
from acme_fleet.edge.memory import Rounds
from acme_fleet.errors import ProtocolError, QuorumError
from acme_fleet.links.wire import decode
from acme_fleet.messages.base import Message
from acme_fleet.messages.cloud_edge import ClusterProfile, ClusterReport
from acme_fleet.messages.edge_device import (
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    HeaderAssignment,
    ImportanceUpdate,
    ImportanceUpload,
    ProfileRequest,
    ReportRequest,
    RoundStart,
    WeightsUpload,
)
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.pipeline import customize
from acme_fleet.runs.events import FaultEvent
from acme_fleet.runs.journal import Journal, read_events
from acme_fleet.runs.sealed import read_sealed
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.classification import CLASSIFICATION
from event_records import event_records
from tiny_fleet import SHORT

Handle = Callable[[DeviceClient, Message], Message]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Handle], None]:
    """``faulty(name, handle)``: replaces what one device does with a message."""
    wrong: dict[str, Handle] = {}

    class Device(DeviceClient):
        def handle(self, message: Message) -> Message:
            own = super().handle
            handle = wrong.get(self._settings.name)
            return own(message) if handle is None else handle(_Sound(own), message)

    monkeypatch.setattr(client, "DeviceClient", Device)
    return wrong.__setitem__


class _Sound:
    """The reply of a sound device."""

    def __init__(self, handle: Callable[[Message], Message]) -> None:
        self.handle = handle


def _fails(*kinds: type[Message], rounds: tuple[int, ...] | None = None) -> Handle:
    def handle(device: Any, message: Message) -> Message:
        here = rounds is None or getattr(message, "round", None) in rounds
        if isinstance(message, kinds) and here:
            raise ProtocolError("the battery is empty")
        return device.handle(message)

    return handle


def _sends(change: Callable[[Message], Message]) -> Handle:
    return lambda device, message: change(device.handle(message))


def _names(summary) -> list[str]:
    return [device.name for device in summary.devices]


def _received(path: Path, device: str, kind: str) -> int:
    """Bytes and number of messages that a device got."""
    events = event_records(path / "events.jsonl")
    return sum(event.get("to") == device and event["type"] == kind for event in events)


# --- a device fails ---------------------------------------------------------------------------


def test_device_that_misses_a_round_returns(finished, prepared: Path, faulty):
    faulty("cam-1", _fails(RoundStart, rounds=(1,)))
    summary = customize(finished.fleet, prepared, resume=True)
    assert _names(summary) == _names(finished.summary)
    assert all(cluster.lost == {} for cluster in summary.clusters)
    assert _received(prepared, "cam-1", "RoundStart") == 3
    assert _received(prepared, "cam-1", "ImportanceUpdate") == 2
    assert _received(prepared, "cam-2", "ImportanceUpdate") == 3
    assert summary.clusters[0].missed == {"cam-1": 1}
    (fault,) = [e for e in read_events(prepared / "events.jsonl") if isinstance(e, FaultEvent)]
    assert (fault.actor, fault.tier, fault.about) == ("north", "edge", "cam-1")
    assert fault.fault == "the battery is empty"
    page = (prepared / "report.html").read_text()
    assert "<b>cam-1</b>, noticed by north: the battery is empty" in page
    assert "<b>cam-1</b> missed 1 round" in page
    # The other cluster has noticed nothing.
    assert summary.devices[2:] == [
        d.model_copy(update={"latency_s": summary.devices[2 + i].latency_s})
        for i, d in enumerate(finished.summary.devices[2:])
    ]


def test_device_that_is_gone_is_named_and_the_others_finish(north, prepared: Path, faulty):
    faulty("cam-1", _fails(RoundStart, ReportRequest))
    summary = customize(north(), prepared, resume=True)
    assert _names(summary) == ["cam-2"]
    assert summary.clusters[0].lost == {"cam-1": "the battery is empty"}
    assert "cam-1" in (prepared / "report.html").read_text()
    assert not (prepared / "devices" / "cam-1" / "model.safetensors").exists()
    # It is told what happened, and what the others have can be used.
    told = CliRunner().invoke(app, ["predict", str(prepared), "--device", "cam-1"])
    assert told.exit_code == 2
    assert "cam-1" in told.stderr
    assert acme_fleet.load(prepared / "devices" / "cam-2")


def test_device_that_never_got_a_model_is_left_out(north, prepared: Path, faulty):
    faulty("cam-2", _fails(HeaderAssignment))
    summary = customize(north(), prepared, resume=True)
    (cluster,) = summary.clusters
    assert cluster.device_names == ["cam-1"]
    assert cluster.similarity == [[1.0]]
    assert cluster.lost == {"cam-2": "cam-2 has received no model yet"}
    assert _received(prepared, "cam-2", "RoundStart") == 0


def test_device_without_profile_gets_no_model_that_it_cannot_store(
    finished, tmp_path: Path, tiny: Callable[..., Any], faulty
):
    """Its cluster's limit is then that of the others; the device itself refuses what is too big."""
    fleet = tiny(**{"reference.training.epochs": 1, "personalization.rounds": 1})
    south = fleet.clusters[1]
    small = south.devices[0].model_copy(update={"storage": 11_000})
    large = south.devices[1].model_copy(update={"storage": 60_000})
    south = south.model_copy(update={"devices": [small, large]})
    only_large = {"widths": [1.0], "depths": [1, 2]}
    backbone = fleet.backbone.model_copy(update=only_large)
    fleet = fleet.model_copy(update={"clusters": [south], "backbone": backbone})
    faulty("badge-1", _fails(ProfileRequest))
    # The plan knows of the small device and refuses; this is about a device that lies low.
    assert fleet.clusters[0].devices[0].storage < 14_488
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "check_feasible", lambda *_: None)
        summary = customize(fleet, tmp_path / "run")
    assert _names(summary) == ["badge-2"]
    assert list(summary.clusters[0].lost) == ["badge-1"]
    assert not (tmp_path / "run" / "devices" / "badge-1" / "model.safetensors").exists()


def test_device_refuses_a_model_that_is_too_large(finished, tmp_path: Path):
    stored = finished.path / "devices" / "cam-1" / "state" / "assignment.safetensors"
    assignment = decode(read_sealed(stored), [HeaderAssignment])
    fleet = finished.fleet
    private = distribute(fleet, load_source(fleet.data)).private["cam-1"]
    coarse = sum(
        tensor.numel() * 4
        for part in (assignment.backbone, assignment.header)
        for tensor in part.values()
    )
    for storage, fits in ((coarse, False), (coarse + 10_000, True)):
        settings = fleet.devices[0].model_copy(update={"storage": storage})
        device = DeviceClient(
            settings,
            CLASSIFICATION,
            fleet.personalization,
            lambda *_: private,
            tmp_path / str(storage),
            fleet.seed,
            Journal(tmp_path / "events.jsonl"),
        )
        if fits:
            assert isinstance(device.handle(assignment), FeatureSample)
        else:
            with pytest.raises(ProtocolError, match=rf"bytes was sent, cam-1 stores {storage}"):
                device.handle(assignment)


# --- a device lies ----------------------------------------------------------------------------


def _forged(message: Message, **fields: Any) -> Message:
    """The message with fields that its constructor would refuse."""
    return type(message).model_construct(**{**dict(message), **fields})


def _importance(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Handle:
    def forge(answer: Message) -> Message:
        if not isinstance(answer, ImportanceUpload):
            return answer
        return _forged(answer, importance=change(dict(answer.importance)))

    return _sends(forge)


_LIES = {
    "nan": (lambda q: {n: v * float("nan") for n, v in q.items()}, "not finite"),
    "infinite": (lambda q: {n: v + float("inf") for n, v in q.items()}, "not finite"),
    "negative": (lambda q: {n: -v - 1 for n, v in q.items()}, "must be non-negative"),
    "both overflows": (
        lambda q: {n: torch.full_like(v, (-1) ** i * 3e38) for i, (n, v) in enumerate(q.items())},
        "importance of cam-1",
    ),
    "zero": (lambda q: {n: v * 0 for n, v in q.items()}, "not all zero"),
    "wrong shape": (lambda q: {n: v[:-1] for n, v in q.items()}, "has shape (5,), expected (6,)"),
    "other dimensions": (lambda q: {n: v[None] for n, v in q.items()}, "has shape (1, 6)"),
    "missing layer": (lambda q: {}, "lacks"),
    "unknown layer": (lambda q: {**q, "evil": torch.ones(6)}, "has unknown evil"),
}


@pytest.mark.parametrize("lie", _LIES)
def test_importance_that_makes_no_sense_is_left_out(
    prepared: Path, north, faulty, monkeypatch: pytest.MonkeyPatch, lie: str
):
    fleet = north(**{"personalization.rounds": 2})
    forge, reason = _LIES[lie]
    faulty("cam-1", _importance(forge))
    own: list[dict[str, torch.Tensor]] = []
    mixed: list[dict[str, torch.Tensor]] = []

    def listen(device: Any, message: Message) -> Message:
        if isinstance(message, ImportanceUpdate):
            mixed.append(message.importance)
        answer = device.handle(message)
        if isinstance(answer, ImportanceUpload):
            own.append(answer.importance)
        return answer

    faulty("cam-2", listen)
    reasons: list[dict[str, str]] = []
    ask = server.EdgeServer._round

    def watch(edge: server.EdgeServer, *arguments: Any) -> bool:
        changed = ask(edge, *arguments)
        reasons.append(dict(edge._devices.lost))
        return changed

    monkeypatch.setattr(server.EdgeServer, "_round", watch)
    summary = customize(fleet, prepared, resume=True)
    # The other one listened to itself alone, in every round.
    assert len(own) == len(mixed) == 2
    for said, heard in zip(own, mixed, strict=True):
        assert ImportanceSet.of(heard, said).is_close(ImportanceSet.of(said).normalized())
    assert len(reasons) == 2
    assert all(reason in told["cam-1"] for told in reasons)
    assert _received(prepared, "cam-1", "ImportanceUpdate") == 0
    assert summary.clusters[0].missed == {"cam-1": 2}
    # It ends with what it could make alone.
    assert _names(summary) == ["cam-1", "cam-2"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f[:, :-1], "has shape (12, 15), expected at most (12, 16)"),
        (lambda f: f.float() * float("inf"), "not finite"),
    ],
    ids=["shape", "infinite"],
)
def test_feature_sample_that_does_not_fit_is_left_out(
    north, prepared: Path, faulty, change: Callable[[torch.Tensor], torch.Tensor], reason: str
):
    def forge(answer: Message) -> Message:
        wrong = isinstance(answer, FeatureSample)
        return _forged(answer, features=change(answer.features)) if wrong else answer

    faulty("cam-1", _sends(forge))
    faulty("cam-2", _fails(HeaderAssignment))
    with pytest.raises(QuorumError) as stopped:  # both are out, so the reason can be read
        customize(north(), prepared, resume=True)
    assert reason in str(stopped.value)
    assert "cam-2: the battery is empty" in str(stopped.value)


def test_report_in_anothers_name_is_left_out(north, prepared: Path, faulty):
    def forge(answer: Message) -> Message:
        return _forged(answer, name="cam-2") if isinstance(answer, DeviceReport) else answer

    faulty("cam-1", _sends(forge))
    summary = customize(north(**{"personalization.rounds": 1}), prepared, resume=True)
    assert _names(summary) == ["cam-2"]
    assert summary.clusters[0].lost == {"cam-1": "the report of cam-1 bears the name cam-2"}


def test_report_with_numbers_that_cannot_be_is_left_out(north, prepared: Path, faulty):
    def forge(answer: Message) -> Message:
        return _forged(answer, accuracy=1.5) if isinstance(answer, DeviceReport) else answer

    faulty("cam-1", _sends(forge))
    summary = customize(north(**{"personalization.rounds": 1}), prepared, resume=True)
    assert "accuracy" in summary.clusters[0].lost["cam-1"]
    # What is said about the lie can be shown on a terminal that reads markup.
    from acme_fleet.report.terminal.run import print_summary

    print_summary(summary)


def test_device_that_claims_other_limits_is_left_out_and_the_cluster_goes_on(
    finished, tmp_path: Path, tiny: Callable[..., Any], faulty
):
    """Also after a stop: why it is out stands on disk. It gets no model and stops no run."""
    fleet = tiny(**SHORT)
    faulty("badge-1", _sends(lambda m: _forged(m, storage_bytes=1) if _is_profile(m) else m))
    absurd = Energy(power_w=1e9, epochs=10**9)
    faulty("cam-1", _sends(lambda m: _forged(m, energy=absurd) if _is_profile(m) else m))
    summary = customize(fleet, tmp_path / "run")
    assert _names(summary) == ["cam-2", "badge-2"]
    north, south = summary.clusters
    assert "power_w = 1000000000.0, the fleet file says 2.0" in north.lost["cam-1"]
    assert "claims to store 1 bytes, the fleet file says 20000" in south.lost["badge-1"]
    assert south.storage_limit_bytes == 30_000
    assert max(candidate.energy_j for candidate in north.candidates) < 1e6
    assert _received(tmp_path / "run", "badge-1", "HeaderAssignment") == 0


def _is_profile(message: Message) -> bool:
    return isinstance(message, DeviceProfile)


# --- an edge server lies ----------------------------------------------------------------------


@pytest.fixture
def lying_edge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Message], Message]], None]:
    """``lying_edge(change)``: changes what the edge server of north answers."""

    def install(change: Callable[[Message], Message]) -> None:
        class Edge(server.EdgeServer):
            def handle(self, message: Message) -> Message:
                answer = super().handle(message)
                return change(answer) if self._name == "north" else answer

        monkeypatch.setattr(server, "EdgeServer", Edge)

    return install


_EDGE_LIES: dict[str, tuple[Callable[[Message], Message], str]] = {
    "one byte of storage": (
        lambda m: (
            _forged(m, parts=[m.parts[0].model_copy(update={"storage_bytes": 1})])
            if isinstance(m, ClusterProfile)
            else m
        ),
        "stores 1 bytes",
    ),
    "another's name": (
        lambda m: _forged(m, name="south") if isinstance(m, ClusterReport) else m,
        "bears the name south, expected north",
    ),
    "a matrix of another size": (
        lambda m: _forged(m, similarity=[[1.0]]) if isinstance(m, ClusterReport) else m,
        "the similarity has 1 rows",
    ),
    "a device of another cluster": (
        lambda m: (
            _forged(m, lost={"badge-1": "gone\x1b[2J\nsouth: lost"})
            if isinstance(m, ClusterReport)
            else m
        ),
        "badge-1, which is not among its devices",
    ),
    "no report at all": (
        lambda m: ProfileRequest() if isinstance(m, ClusterReport) else m,
        "unexpected message of type 'ProfileRequest'",
    ),
}


@pytest.mark.parametrize("lie", _EDGE_LIES)
def test_edge_server_that_lies_is_lost_and_not_the_run(
    finished, prepared: Path, tiny: Callable[..., Any], lying_edge, lie: str
):
    fleet = tiny(**{"edge_quorum": 0.5, "personalization.rounds": 1})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    change, reason = _EDGE_LIES[lie]
    lying_edge(change)
    summary = customize(fleet, prepared, resume=True)
    assert _names(summary) == ["badge-1", "badge-2"]
    assert list(summary.lost) == ["north"]
    assert reason in summary.lost["north"]
    assert summary.lost["north"].isprintable()
    assert [cluster.name for cluster in summary.clusters] == ["south"]


# --- another round ----------------------------------------------------------------------------


def test_device_refuses_a_mixture_of_a_round_that_it_has_not_trained_for(finished, tmp_path: Path):
    fleet = finished.fleet
    private = distribute(fleet, load_source(fleet.data)).private["cam-1"]
    folder = shutil.copytree(finished.path / "devices" / "cam-1", tmp_path / "cam-1")
    state = {path.name: path.read_bytes() for path in (folder / "state").iterdir()}

    def device() -> DeviceClient:
        settings, journal = fleet.devices[0], Journal(tmp_path / "events.jsonl")
        return DeviceClient(
            settings, CLASSIFICATION, fleet.personalization, lambda *_: private, folder, 3, journal
        )

    plan = decode(read_sealed(folder / "state" / "assignment.safetensors"), [HeaderAssignment]).plan
    layers = HeaderPlan.model_validate(plan).layers
    channels = plan["genotype"]["channels"]
    mixture = {layer: torch.ones(channels) for layer in layers}
    for number in (0, 1, 7, 2**53):
        with pytest.raises(ProtocolError, match=f"a mixture of round {number} was sent"):
            device().handle(ImportanceUpdate(round=number, importance=mixture))
    for number in (3, 2**53):
        with pytest.raises(ProtocolError, match=f"round {number} was asked for, of 3"):
            device().handle(RoundStart(round=number))
    assert {p.name: p.read_bytes() for p in (folder / "state").iterdir()} == state
    # An edge server that lost its own state begins again, round by round.
    again = device()
    assert isinstance(again.handle(RoundStart(round=0)), ImportanceUpload)
    with pytest.raises(ProtocolError, match="round 2 was sent, cam-1 has trained for round 0"):
        again.handle(ImportanceUpdate(round=2, importance=mixture))
    assert again.handle(ImportanceUpdate(round=0, importance=mixture)).round == 0


# --- late, and back again ---------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_last_set_of_a_device_that_misses_rounds_counts_less_each_time(
    north, prepared: Path, faulty, decay: float
):
    fleet = north(**{"personalization.stale_decay": decay, "personalization.prune_share": 0.1})
    sent: list[ImportanceSet] = []
    own: list[ImportanceSet] = []
    heard: list[dict[str, torch.Tensor]] = []

    def fades(device: Any, message: Message) -> Message:
        if isinstance(message, RoundStart) and message.round > 0:
            raise ProtocolError("out of reach")
        answer = device.handle(message)
        if isinstance(answer, ImportanceUpload):
            sent.append(ImportanceSet.of(answer.importance, sorted(answer.importance)).normalized())
        return answer

    def listen(device: Any, message: Message) -> Message:
        if isinstance(message, ImportanceUpdate):
            heard.append(message.importance)
        answer = device.handle(message)
        if isinstance(answer, ImportanceUpload):
            own.append(ImportanceSet.of(answer.importance, sorted(answer.importance)).normalized())
        return answer

    faulty("cam-1", fades)
    faulty("cam-2", listen)
    summary = customize(fleet, prepared, resume=True)
    (cluster,) = summary.clusters
    weights = cluster.similarity[cluster.device_names.index("cam-2")]
    to_self = weights[cluster.device_names.index("cam-2")]
    to_other = weights[cluster.device_names.index("cam-1")]
    assert len(sent) == 1
    assert len(heard) == 3
    assert to_other > 0
    for missed in range(3):
        share = to_other * decay**missed
        expected = (to_self * own[missed] + share * sent[0]) / (to_self + share)
        mixed = ImportanceSet.of(heard[missed], expected.layers)
        assert mixed.is_close(expected, rtol=1e-5, atol=1e-7)
    assert cluster.missed == {"cam-1": 2}
    assert cluster.lost == {}  # it was there for the report


def test_update_that_was_shortened_is_told(north, prepared: Path, faulty):
    fleet = north(**{"personalization.mix": "both", "personalization.rounds": 1})

    def forge(answer: Message) -> Message:
        if not isinstance(answer, WeightsUpload):
            return answer
        return _forged(answer, header={k: 1000 * v for k, v in answer.header.items()})

    faulty("cam-1", _sends(forge))
    summary = customize(fleet, prepared, resume=True)
    assert list(summary.clusters[0].shortened) == ["cam-1"]
    assert 0 < summary.clusters[0].shortened["cam-1"] < 0.1
    assert "and was shortened: cam-1" in (prepared / "report.html").read_text()


# --- too few ----------------------------------------------------------------------------------


def test_too_few_devices_stop_the_run_with_their_names_and_its_state(
    finished, prepared: Path, faulty, monkeypatch: pytest.MonkeyPatch
):
    for name in ("cam-1", "cam-2"):
        faulty(name, _fails(RoundStart, rounds=(1,)))
    with pytest.raises(QuorumError) as stopped:
        customize(finished.fleet, prepared, resume=True)
    for words in (
        "cloud: 1 of 2 edge servers answered, 2 are needed",
        "north: 0 of 2 devices answered, 1 are needed",
        *("cam-1: the battery is empty", "cam-2: the battery is empty"),
        f"what was finished is in {prepared / 'edges' / 'north'}",
    ):
        assert words in str(stopped.value)
    # Nothing pretends to be finished; what is, is kept.
    assert not (prepared / "summary.json").exists()
    assert not (prepared / "report.html").exists()
    assert Rounds.read(prepared / "edges" / "north").done == 1
    assert Rounds.read(prepared / "edges" / "south").done == 3
    # With new batteries it ends as if nothing had happened.
    monkeypatch.undo()
    summary = customize(finished.fleet, prepared, resume=True)
    models = {p.parent.name: p.read_bytes() for p in prepared.glob("devices/*/model.safetensors")}
    assert models == finished.models
    assert all(cluster.lost == {} for cluster in summary.clusters)


def test_quorum_of_all_needs_all(north, prepared: Path, faulty):
    fleet = north(**{"personalization.quorum": 1.0})
    faulty("cam-2", _fails(RoundStart, rounds=(2,)))
    with pytest.raises(QuorumError, match="north: 1 of 2 devices answered, 2 are needed"):
        customize(fleet, prepared, resume=True)


def test_cluster_that_fails_does_not_keep_the_others_from_ending(
    finished, prepared: Path, tiny: Callable[..., Any], faulty, monkeypatch: pytest.MonkeyPatch
):
    fleet = tiny(edge_quorum=0.5)
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    for name in ("cam-1", "cam-2"):
        faulty(name, _fails(HeaderAssignment))
    arguments = [str(prepared / "fleet.yaml"), "--out", str(prepared), "--resume"]
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 1, result.output
    summary = Summary.read(prepared / "summary.json")
    assert _names(summary) == ["badge-1", "badge-2"]
    assert "cam-1: the battery is empty" in summary.lost["north"]
    assert "<b>north</b>" in (prepared / "report.html").read_text()
    told = CliRunner().invoke(app, ["explain", str(prepared), "--device", "cam-1"])
    assert told.exit_code == 2
    assert "cluster north did not finish" in told.stderr
    assert CliRunner().invoke(app, ["explain", str(prepared)]).exit_code == 0
    # Later the rest is made up for, and nothing else is done again.
    monkeypatch.undo()
    whole = customize(fleet, prepared, resume=True)
    assert whole.lost == {}
    models = {p.parent.name: p.read_bytes() for p in prepared.glob("devices/*/model.safetensors")}
    assert models == finished.models
    assert _received(prepared, "badge-1", "RoundStart") == 3


def test_command_line_says_it_in_one_message(north, prepared: Path, faulty):
    north()
    for name in ("cam-1", "cam-2"):
        faulty(name, _fails(HeaderAssignment))
    arguments = ["run", str(prepared / "fleet.yaml"), "--out", str(prepared), "--resume"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "cam-1: the battery is empty" in result.stderr
    assert "Traceback" not in result.output


def test_bug_is_not_taken_for_a_failing_device(north, prepared: Path, faulty):
    """A run must not pass by leaving out whatever does not work."""

    def broken(device: Any, message: Message) -> Message:
        if isinstance(message, RoundStart):
            raise RuntimeError("a bug")
        return device.handle(message)

    faulty("cam-1", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        customize(north(), prepared, resume=True)
    assert not (prepared / "summary.json").exists()


def test_device_that_lost_its_state_is_told_to_be_lost(finished, tmp_path: Path):
    path = shutil.copytree(finished.path, tmp_path / "run")
    shutil.rmtree(path / "devices" / "cam-1")
    (path / "summary.json").unlink()
    summary = customize(finished.fleet, path, resume=True)
    assert summary.clusters[0].lost == {"cam-1": "cam-1 has received no model yet"}
    assert _names(summary) == ["cam-2", "badge-1", "badge-2"]
