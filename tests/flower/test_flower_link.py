"""The link and the roles' hosts of the Flower engine; a thread stands in for Flower's relay."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from acme_fleet.errors import ProtocolError, RunError
from acme_fleet.links.base import Failure
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.links.news import News
from acme_fleet.links.wire import encode
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import FeatureSample, RoundReport, RoundStart
from acme_fleet.network.flower import channel as channel_module
from acme_fleet.network.flower import link as flower
from acme_fleet.network.flower.channel import Channel, listen
from acme_fleet.network.flower.frames import Header, receive_frame, send_frame
from acme_fleet.network.flower.link import FlowerLink, RunIdentity
from acme_fleet.network.flower.role_host import Board, HostedRun, RoleHost
from acme_fleet.runs.events import Tier
from acme_fleet.runs.journal import Journal, Observer
from answering import Peer, report, steady
from event_records import event_records

_RUN, _FLEET = "0" * 32, "1" * 64
_TIME = "2026-01-26T10:00:00.000+00:00"
_LONG = 20.0

Answer = tuple[Header, bytes]
Node = Callable[[Header, bytes], Answer | None]


class _Relay:
    """Passes frames to functions in the place of nodes, each in a thread of its own."""

    def __init__(self, path: Path, nodes: dict[int, Node]) -> None:
        self.asked: list[tuple[Header, bytes]] = []
        self._nodes = nodes
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                header, payload = receive_frame(self._connection)
                if header.get("stop"):
                    return
                self.asked.append((header, payload))
                threading.Thread(target=self._pass, args=(header, payload), daemon=True).start()
        except OSError:
            return
        finally:
            self._connection.close()

    def _pass(self, header: Header, payload: bytes) -> None:
        answer = self._nodes[header["node"]](header, payload)
        if answer is not None:
            self.send({"id": header["id"]} | answer[0], answer[1])

    def send(self, header: Header, payload: bytes = b"") -> None:
        with self._lock, suppress(OSError):
            send_frame(self._connection, header, payload)

    def die(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "WAIT_S", 0.3)
    monkeypatch.setattr(flower, "_BACK_S", 0.1)
    monkeypatch.setattr(flower, "_AGAIN_S", 0.05)
    monkeypatch.setattr(flower, "_LOOK_S", 0.05)
    monkeypatch.setattr(flower, "_LATE_S", 0.2)
    monkeypatch.setattr(channel_module, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(channel_module, "_RETRY_S", 0.2)


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Callable[..., RoleHost]]:
    """``hosted(name, role, replies=True)``: a host of a role."""
    hosts = []

    def make(name: str, role: Peer, *, replies: bool = True) -> RoleHost:
        def open_run(run: str) -> HostedRun:
            folder = tmp_path / name / run
            folder.mkdir(parents=True, exist_ok=True)
            board = Board()
            journal = Journal(folder / "events.jsonl", board)
            kept = folder / "replies" if replies else None
            return HostedRun(role, journal, folder / "events.jsonl", board, kept)

        hosts.append(RoleHost(tmp_path / f"{name}.sock", _FLEET, [RoundStart], open_run))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Callable[..., tuple[FlowerLink, _Relay]]]:
    """``linked({"a": node}, grace_s=1)``: a link to functions in the place of nodes, its relay."""
    channels = []

    def make(peers: dict[str, Node], **options: Any) -> tuple[FlowerLink, _Relay]:
        channels.append(Channel(tmp_path / "relay.sock", lambda: None))
        relay = _Relay(tmp_path / "relay.sock", dict(enumerate(peers.values(), 100)))
        nodes = {name: node for node, name in enumerate(peers, 100)}
        journal = Journal(tmp_path / "events.jsonl")
        identity = RunIdentity(_RUN, _FLEET)
        return FlowerLink(
            "north", channels[-1], nodes, identity, journal, "device", **options
        ), relay

    yield make
    for each in channels:
        each.close()


def _ask(link: FlowerLink, *names: str, timeout_s: float = _LONG) -> dict[str, Message | Failure]:
    return link.call(dict.fromkeys(names, RoundStart(round=0)), RoundReport, timeout_s)


def _messages(path: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in e.items() if k != "time"} for e in event_records(path) if "bytes" in e
    ]


# --- the same as the embedded link ------------------------------------------------------------


def test_answers_and_bytes_are_those_of_the_embedded_link(tmp_path: Path, hosted, linked):
    roles = {"cam-1": steady(3), "cam-2": steady(4)}
    link, _ = linked({name: hosted(name, role).answer for name, role in roles.items()})
    answers = _ask(link, "cam-2", "cam-1")
    embedded = EmbeddedLink("north", roles, Journal(tmp_path / "embedded.jsonl"), "device")
    assert link.members() == embedded.members()
    expected = embedded.call(
        dict.fromkeys(["cam-2", "cam-1"], RoundStart(round=0)), RoundReport, _LONG
    )
    assert answers == expected
    assert list(answers) == ["cam-2", "cam-1"]
    ours, theirs = (_messages(tmp_path / f"{n}.jsonl") for n in ("events", "embedded"))
    assert sorted(map(str, ours)) == sorted(map(str, theirs))
    assert len(ours) == 4


def test_peers_work_at_the_same_time(hosted, linked):
    barrier = threading.Barrier(3, timeout=_LONG)

    def together(_: Message) -> Message:
        barrier.wait()
        return report()

    link, _ = linked({n: hosted(n, Peer(together)).answer for n in ("a", "b", "c")})
    assert all(isinstance(answer, RoundReport) for answer in _ask(link, "a", "b", "c").values())


def test_a_slow_peer_is_asked_again_without_the_payload(tmp_path: Path, hosted, linked):
    go_on = threading.Event()

    def slow(_: Message) -> Message:
        assert go_on.wait(_LONG)
        return report()

    role = Peer(slow)
    link, relay = linked({"cam-1": hosted("cam-1", role).answer})
    threading.Timer(1.0, go_on.set).start()
    assert _ask(link, "cam-1") == {"cam-1": report()}
    payloads = [payload for _, payload in relay.asked]
    assert payloads[0]
    assert len(payloads) > 2
    assert not any(payloads[1:])
    assert len(role.received) == 1
    assert len(_messages(tmp_path / "events.jsonl")) == 2


def test_deadline_ends_the_wait(hosted, linked):
    role = Peer(lambda _: time.sleep(3) or report())
    link, _ = linked({"a": hosted("a", role).answer, "b": hosted("b", steady()).answer})
    answers = _ask(link, "a", "b", timeout_s=0.8)
    assert answers == {"a": Failure("no answer before the deadline"), "b": report()}


# --- faults -----------------------------------------------------------------------------------


def test_peer_that_comes_back_within_the_grace_answers(hosted, linked):
    host, tries = hosted("cam-1", steady()), []

    def gone_at_first(header: Header, payload: bytes) -> Answer:
        tries.append(header["id"])
        if len(tries) < 4:
            return {"error": "the node is offline", "passing": True}, b""
        return host.answer(header, payload)

    link, _ = linked({"cam-1": gone_at_first})
    assert _ask(link, "cam-1") == {"cam-1": report()}
    assert len(set(tries)) == 4


def test_question_that_is_lost_is_asked_again(hosted, linked):
    """As where a device is killed that has taken the question."""
    host, tries = hosted("a", steady()), []

    def silent_at_first(header: Header, payload: bytes) -> Answer | None:
        tries.append(header["id"])
        return host.answer(header, payload) if len(tries) > 1 else None

    link, relay = linked({"a": silent_at_first})
    assert _ask(link, "a") == {"a": report()}
    assert len(relay.asked) == 2


def test_late_answer_counts_though_the_question_was_asked_again(hosted, linked):
    """And what is told of the older question, but for its answer, does not."""
    host, first = hosted("a", steady()), []

    def late(header: Header, payload: bytes) -> Answer | None:
        if not first:
            first.append((header, payload))
            return None
        relay.send({"id": first[0][0]["id"], "error": "an older one's node was killed"})
        answer = host.answer(*first[0])
        relay.send({"id": first[0][0]["id"]} | answer[0], answer[1])
        return None  # the second question stays without an answer

    link, relay = linked({"a": late}, grace_s=60)
    assert _ask(link, "a") == {"a": report()}


def test_peer_that_stays_away_is_a_failure_and_others_are_not(hosted, linked):
    gone: Node = lambda *_: ({"error": "the node is offline", "passing": True}, b"")  # noqa: E731
    link, _ = linked({"a": gone, "b": hosted("b", steady()).answer}, grace_s=0.3)
    answers = _ask(link, "a", "b")
    assert answers["b"] == report()
    assert isinstance(answers["a"], Failure)
    assert answers["a"].reason == "out of reach for 0 s: the node is offline"


def test_peer_that_was_given_up_is_asked_once_and_not_waited_for(hosted, linked):
    host, there, tries = hosted("a", steady()), [False], []

    def comes_late(header: Header, payload: bytes) -> Answer:
        tries.append(header["wait"])
        if there[0]:
            return host.answer(header, payload)
        return {"error": "the node is offline", "passing": True}, b""

    link, _ = linked({"a": comes_late}, grace_s=0.3)
    assert isinstance(_ask(link, "a")["a"], Failure)
    before = len(tries)
    assert before > 2
    assert set(tries) == {0.3}
    assert isinstance(_ask(link, "a")["a"], Failure)
    assert tries[before:] == [0.1], "it has to say soon that it is back"
    there[0] = True
    assert _ask(link, "a") == {"a": report()}


def test_what_a_role_refuses_is_a_failure_at_once(hosted, linked):
    def refuse(_: Message) -> Message:
        raise ProtocolError("the battery is empty")

    link, relay = linked({"a": hosted("a", Peer(refuse)).answer})
    assert _ask(link, "a") == {"a": Failure("the battery is empty")}
    assert len(relay.asked) == 1


def test_full_disk_passes_when_there_is_room_again(hosted, linked):
    tries = []

    def fill(_: Message) -> Message:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        return report()

    link, _ = linked({"a": hosted("a", Peer(fill)).answer})
    assert _ask(link, "a") == {"a": report()}
    assert len(tries) == 3


def test_a_new_relay_is_asked_everything_again_and_nothing_is_computed_twice(
    tmp_path: Path, hosted
):
    go_on, begun = threading.Event(), threading.Event()

    def slow(_: Message) -> Message:
        begun.set()
        assert go_on.wait(_LONG)
        return report()

    role, relays = Peer(slow), []
    host = hosted("cam-1", role)

    def start_relay() -> None:
        relays.append(_Relay(tmp_path / "relay.sock", {7: host.answer}))

    channel = Channel(tmp_path / "relay.sock", start_relay)
    journal = Journal(tmp_path / "events.jsonl")
    link = FlowerLink("north", channel, {"cam-1": 7}, RunIdentity(_RUN, _FLEET), journal, "device")

    def cut() -> None:
        assert begun.wait(_LONG)
        relays[0].die()
        time.sleep(0.3)
        go_on.set()

    threading.Thread(target=cut, daemon=True).start()
    assert _ask(link, "cam-1") == {"cam-1": report()}
    assert len(relays) == 2
    assert len(role.received) == 1
    channel.close()


def test_no_relay_at_all_is_a_failure_with_its_reason(tmp_path: Path):
    def start_relay() -> None:
        raise RunError("the SuperLink on this host does not answer")

    channel = Channel(tmp_path / "relay.sock", start_relay)
    journal = Journal(tmp_path / "events.jsonl")
    identity = RunIdentity(_RUN, _FLEET)
    link = FlowerLink("north", channel, {"a": 1}, identity, journal, "device", grace_s=1.5)
    (answer,) = _ask(link, "a").values()
    assert isinstance(answer, Failure)
    assert "the SuperLink on this host does not answer" in answer.reason
    channel.close()


def test_restarted_host_answers_from_its_disk(hosted, linked):
    before, after = steady(5), steady(6)
    header, payload = _header(encode(RoundStart(round=0))), encode(RoundStart(round=0))
    first = hosted("cam-1", before)
    _, answer = first.answer(header, payload)
    first.close()
    second = hosted("cam-1", after)
    assert second.answer(header, b"") == ({"unknown": True}, b"")
    assert second.answer(header, payload)[1] == answer == encode(report(5))
    assert after.received == []
    link, _ = linked({"cam-1": second.answer})
    assert _ask(link, "cam-1") == {"cam-1": report(5)}


def test_run_of_another_identity_starts_afresh(hosted):
    role = steady()
    host, payload = hosted("cam-1", role), encode(RoundStart(round=0))
    host.answer(_header(payload), payload)
    host.answer(_header(payload, run="a" * 32), payload)
    assert len(role.received) == 2


# --- nobody is trusted ------------------------------------------------------------------------


def _header(payload: bytes, **changes: Any) -> Header:
    key = hashlib.sha256(payload).hexdigest()
    return {"run": _RUN, "fleet": _FLEET, "key": key, "wait": 5.0, "told": 0} | changes


_DAMAGED = {
    "random": b"\x08\0\0\0\0\0\0\0nonsense",
    "cut": encode(report())[:-5],
    "of another type": encode(FeatureSample(features=torch.ones(1, 2))),
    "empty": b"",
}


@pytest.mark.parametrize("payload", _DAMAGED.values(), ids=list(_DAMAGED))
def test_damaged_answer_is_a_failure(payload: bytes, linked):
    link, _ = linked({"a": lambda *_: ({"news": {}}, payload)})
    (answer,) = _ask(link, "a").values()
    assert isinstance(answer, Failure)
    assert "refused" in answer.reason or "unexpected" in answer.reason


def test_damaged_question_is_sent_again(hosted, linked):
    role, tries = steady(), []
    host = hosted("a", role)

    def damage_first(header: Header, payload: bytes) -> Answer:
        tries.append(payload)
        return host.answer(header, payload if len(tries) > 1 else payload[:-1] + b"!")

    link, _ = linked({"a": damage_first})
    assert _ask(link, "a") == {"a": report()}
    assert len(tries) == 2
    assert len(role.received) == 1


def test_host_of_another_fleet_refuses(hosted, linked):
    host = hosted("a", steady())
    link, _ = linked({"a": lambda h, p: host.answer(h | {"fleet": "2" * 64}, p)})
    (answer,) = _ask(link, "a").values()
    assert isinstance(answer, Failure)
    assert "fleet file or seed differs" in answer.reason


def test_who_cannot_be_asked_is_known_before_anything_is(tmp_path: Path, hosted, linked):
    roles = {name: steady() for name in ("a", "b")}
    there, other = (hosted(name, role) for name, role in roles.items())
    gone: Node = lambda *_: ({"error": "the node is offline", "passing": True}, b"")  # noqa: E731
    link, relay = linked(
        {
            "a": there.answer,
            "b": lambda h, p: other.answer(h | {"fleet": "2" * 64}, p),
            "c": gone,
        },
        grace_s=0.3,
    )
    told = link.unreachable(_LONG)
    assert sorted(told) == ["b", "c"]
    assert "fleet file or seed differs" in told["b"]
    assert "offline" in told["c"]
    assert not any(payload for _, payload in relay.asked)
    assert all(role.received == [] for role in roles.values())
    assert event_records(tmp_path / "events.jsonl") == []
    assert _ask(link, "a") == {"a": report()}


def test_answer_to_no_question_is_dropped(hosted, linked):
    host = hosted("b", steady(2))

    def forged(header: Header, payload: bytes) -> Answer:
        for claimed in ("", "f" * 32, None, 7):
            relay.send({"id": claimed, "news": {}}, encode(report(9)))
        return host.answer(header, payload)

    link, relay = linked({"b": forged})
    assert _ask(link, "b") == {"b": report(2)}


@pytest.mark.parametrize(
    "frame",
    [struct.pack(">IQ", 2**31, 0), struct.pack(">IQ", 2, 0) + b"[]", struct.pack(">IQ", 2, 2**40)],
    ids=["large header", "no object", "large payload"],
)
def test_malformed_frame_is_refused(frame: bytes):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame)
        with pytest.raises(ProtocolError):
            receive_frame(ours)


def test_host_answers_on_its_socket_whatever_comes(tmp_path: Path, hosted):
    host = hosted("cam-1", steady())
    threading.Thread(target=host.serve, daemon=True).start()
    payload = encode(RoundStart(round=0))

    def ask(header: Header, payload: bytes) -> Answer:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / "cam-1.sock"))
            send_frame(connection, header, payload)
            return receive_frame(connection)

    assert "malformed" in ask({"run": "../.."}, payload)[0]["error"]
    assert "malformed" in ask(_header(payload, run="../../etc"), payload)[0]["error"]
    assert "unexpected" in ask(_header(b := encode(report())), b)[0]["error"]
    assert ask(_header(payload), payload)[1] == encode(report())
    assert (tmp_path / "cam-1.sock").stat().st_mode & 0o077 == 0


def test_one_process_at_a_time_on_a_socket(tmp_path: Path):
    with listen(tmp_path / "a.sock"), pytest.raises(RunError, match="another process"):
        listen(tmp_path / "a.sock")
    listen(tmp_path / "a.sock").close()  # what a killed process left is taken over
    with pytest.raises(RunError, match="longer than 100 bytes"):
        listen(tmp_path / ("long" * 30) / "a.sock")


def test_kept_answer_that_was_damaged_is_computed_again(tmp_path: Path, hosted):
    asked: list[Message] = []

    def work(message: Message) -> Message:
        asked.append(message)
        return report(7)

    host, question = hosted("cam-1", Peer(work)), encode(RoundStart(round=0))
    run, key = host._open_run(_RUN), hashlib.sha256(question).hexdigest()
    answer = host._work(run, key, question)
    assert host._work(run, key, question) == answer
    assert len(asked) == 1
    (kept,) = (tmp_path / "cam-1").rglob("replies/*")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert host._work(run, key, question) == answer
    assert len(asked) == 2


# --- progress ---------------------------------------------------------------------------------


def test_stages_and_messages_of_a_peer_reach_the_journal_once(tmp_path: Path, hosted, linked):
    seen: list[tuple[str, str, int, int]] = []

    class Watch(Observer):
        def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
            seen.append((actor, name, done, total))

    def work(_: Message) -> Message:
        journal = host.journal_of_run()
        with journal.stage("cam-1", "round 1", "device") as progress:
            progress(1, 2)
        return report()

    host = hosted("cam-1", Peer(work))
    host.journal_of_run = lambda: host._runs[_RUN].journal
    link, _ = linked({"cam-1": host.answer}, observer=Watch())
    _ask(link, "cam-1")
    link._told["cam-1"] = 0  # as after a restart of who asks
    _ask(link, "cam-1")
    stages = [event for event in event_records(tmp_path / "events.jsonl") if "stage" in event]
    assert [(event["actor"], event["stage"]) for event in stages] == [("cam-1", "round 1")]
    assert ("cam-1", "round 1", 2, 2) in seen


_SENT = {
    **{"time": _TIME, "from": "cam-1", "to": "north", "type": "RoundReport", "bytes": 1},
    **{"tier": "device", "direction": "up"},
}
_SUBJECTS: dict[str, Tier] = {"north": "edge", "cam-1": "device", "cam-3": "device"}
_LIES: dict[str, dict[str, Any]] = {
    "another's fault": {
        "events": [{"time": _TIME, "fault": "x", "actor": "cam-2", "tier": "device", "about": "a"}]
    },
    "a fault of another tier": {
        "events": [
            {"time": _TIME, "fault": "x", "actor": "cam-1", "tier": "edge", "about": "cam-1"}
        ],
        "told": 1,
    },
    "a stage of another tier": {
        "events": [{"time": _TIME, "stage": "x", "actor": "cam-1", "tier": "edge", "seconds": 1.0}],
        "told": 1,
    },
    "another's stage": {"stages": [{"actor": "cam-2", "name": "x", "done": 0, "total": 1}]},
    "another's event": {
        "events": [
            {"time": _TIME, "stage": "x", "actor": "cloud", "tier": "cloud", "seconds": 1.0}
        ],
    },
    "another's message": {
        "events": [_SENT | {"from": "cam-2"}],
        "told": 1,
    },
    **{
        f"{field} {value}": {
            "events": [_SENT | {field: value}],
            "told": 1,
        }
        for field, value in [
            *(("bytes", 2**53), ("bytes", -1), ("type", "Raw\x1b[31m"), ("type", "Message")),
            *(("time", "yesterday"), ("time", "2026-01-26T10:00:00"), ("time", "9999-01-01T00Z")),
            *(("to", "cam-1"), ("from", "cloud"), ("to", "../etc"), ("seconds", 1.0)),
            *(("tier", "cloud"), ("tier", "edge"), ("direction", "down"), ("direction", "aside")),
        ]
    },
    "a stage that takes for ever": {
        "events": [
            {"time": _TIME, "stage": "x", "actor": "cam-1", "tier": "device", "seconds": 1e300}
        ],
        "told": 1,
    },
    "more done than there is": {
        "stages": [{"actor": "cam-1", "name": "x", "done": 2, "total": 1}],
    },
    "a field too many": {
        "events": [{"time": _TIME, "actor": "cam-1", "tier": "device", "seconds": 1, "x": "data"}]
    },
    "not finite": {
        "events": [
            {"time": _TIME, "stage": "x", "actor": "cam-1", "tier": "device", "seconds": 1e999}
        ]
    },
    "long": {"stages": [{"actor": "cam-1", "name": "x" * 300, "done": 0, "total": 1}]},
    "no list": {"events": "all"},
}


@pytest.mark.parametrize("told", _LIES.values(), ids=list(_LIES))
def test_news_of_others_or_malformed_are_dropped(told: dict[str, Any], tmp_path: Path, linked):
    assert News.about(_SUBJECTS, told) is None
    link, _ = linked({"cam-1": lambda *_: ({"news": told}, encode(report()))})
    assert _ask(link, "cam-1") == {"cam-1": report()}
    assert len(event_records(tmp_path / "events.jsonl")) == 2
    assert json.dumps(told)[:5] not in (tmp_path / "events.jsonl").read_text()


def test_news_that_are_true_are_taken() -> None:
    fault = {"time": _TIME, "fault": "x", "actor": "north", "tier": "edge", "about": "cam-1"}
    stage = {"time": _TIME, "stage": "x", "actor": "cam-3", "tier": "device", "seconds": 1.0}
    down = _SENT | {"from": "north", "to": "cam-1", "type": "RoundStart", "direction": "down"}
    news = News.about(_SUBJECTS, {"told": 4, "events": [fault, stage, down, _SENT]})
    assert news is not None
    assert [event.record() for event in news.events] == [
        fault,
        stage,
        down | {"occasion": ""},
        _SENT | {"occasion": ""},
    ]


def test_news_of_a_group_are_those_of_its_edge() -> None:
    stage = {"actor": "north:2", "name": "header search", "done": 1, "total": 9}
    event = {
        "time": _TIME,
        "stage": "header search",
        "actor": "north:2",
        "tier": "edge",
        "seconds": 1.0,
    }
    told = {"told": 1, "stages": [stage], "events": [event]}
    assert News.about(_SUBJECTS, told) is not None
    assert News.about({"south": "edge"}, told) is None


def test_text_of_a_peer_reaches_observer_and_journal_as_one_harmless_line(
    tmp_path: Path, linked: Callable[..., Any]
) -> None:
    evil = "round 1\x1b[2J\ncloud: finished \u202e[/bold]"
    event = {"time": _TIME, "stage": evil, "actor": "cam-1", "tier": "device", "seconds": 1.0}
    stage = {"actor": "cam-1", "name": evil, "done": 0, "total": 1, "note": evil}
    told = {"told": 1, "events": [event], "stages": [stage]}
    seen: list[str] = []

    class Watch(Observer):
        def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
            seen.extend((name, note))

    link, _ = linked({"cam-1": lambda *_: ({"news": told}, encode(report()))}, observer=Watch())
    _ask(link, "cam-1")
    (written,) = [e["stage"] for e in event_records(tmp_path / "events.jsonl") if "stage" in e]
    assert seen == [written, written]
    assert written == "round 1?[2J cloud: finished ?[/bold]"


@pytest.mark.parametrize("told", [0, 7, 2**53], ids=str)
def test_peer_that_tells_another_number_of_events_than_it_sends_is_not_believed(
    told: int, tmp_path: Path, linked: Callable[..., Any]
) -> None:
    event = {"time": _TIME, "stage": "x", "actor": "cam-1", "tier": "device", "seconds": 1.0}
    news = {"told": told, "events": [event]}
    link, _ = linked({"cam-1": lambda *_: ({"news": news}, encode(report()))})
    _ask(link, "cam-1")
    assert not any("stage" in e for e in event_records(tmp_path / "events.jsonl"))
    assert link._told["cam-1"] == 0


def test_reason_of_a_peer_is_one_short_line(linked: Callable[..., Any]) -> None:
    evil = "no\x1b]0;owned\x07\nacme: all is well\r" + "x" * 50_000
    link, _ = linked({"a": lambda *_: ({"error": evil}, b"")})
    (answer,) = _ask(link, "a").values()
    assert isinstance(answer, Failure)
    assert answer.reason.isprintable()
    assert len(answer.reason) <= 500


def test_memory_for_a_frame_grows_with_what_arrives_and_not_with_what_was_announced() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack(">IQ", 2, 2**31 - 1) + b"{}" + b"x" * 1000)
    theirs.close()
    tracemalloc.start()
    try:
        with ours, pytest.raises(ConnectionError):
            receive_frame(ours)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_figures_stay_on_the_host_that_measured_them(tmp_path: Path):
    path, board = tmp_path / "events.jsonl", Board()
    journal = Journal(path, board)
    hosted = HostedRun(lambda message: message, journal, path, board, None)
    for number in range(3):
        journal.figure("cam-1", "device", "validation score", number, 0.5)
        journal.fault("cam-1", "device", "cam-1", f"fault {number}")
    news = hosted.news(1)
    assert [event["fault"] for event in news["events"]] == ["fault 1", "fault 2"]
    assert news["told"] == 3
    assert News.about({"cam-1": "device"}, news) is not None
