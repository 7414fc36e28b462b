"""All peers in one process: as separate as over a network, and counted like there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from acme_fleet.errors import ProtocolError, QuorumError
from acme_fleet.links.base import Failure
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.links.wire import encode
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import (
    FeatureSample,
    ImportanceUpdate,
    ImportanceUpload,
    ReportRequest,
    RoundReport,
    RoundStart,
)
from acme_fleet.runs.journal import Journal, Observer
from answering import Peer, raises, report, steady
from event_records import event_records

_LONG = 60.0


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "events.jsonl")


@pytest.fixture
def events(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    return lambda: event_records(tmp_path / "events.jsonl")


@pytest.fixture
def late() -> Iterator[Peer]:
    """A peer that answers only when the test is over."""
    over = threading.Event()

    def wait(_: Message) -> Message:
        assert over.wait(_LONG)
        return report(99)

    peer = Peer(wait)
    yield peer
    over.set()


def test_what_is_counted_is_what_was_encoded(journal: Journal, events):
    request = ImportanceUpdate(round=0, importance={"layer": torch.rand(7)})
    answer = ImportanceUpload(round=0, importance={"layer": torch.rand(30), "b": torch.rand(2)})
    link = EmbeddedLink("north", {"cam": Peer(lambda _: answer)}, journal, "device")
    link.call({"cam": request}, ImportanceUpload, _LONG)
    told = [{k: v for k, v in event.items() if k != "time"} for event in events()]
    assert told == [
        {
            **{"from": "north", "to": "cam", "type": "ImportanceUpdate", "occasion": "round 1"},
            **{"tier": "device", "direction": "down"},
            "bytes": len(encode(request)),
        },
        {
            **{"from": "cam", "to": "north", "type": "ImportanceUpload", "occasion": "round 1"},
            **{"tier": "device", "direction": "up"},
            "bytes": len(encode(answer)),
        },
    ]


def test_no_memory_is_shared(journal: Journal):
    sent = ImportanceUpdate(round=0, importance={"layer": torch.ones(3)})
    answered = ImportanceUpload(round=0, importance={"layer": torch.full((3,), 2.0)})

    def spoil(message: Message) -> Message:
        assert isinstance(message, ImportanceUpdate)
        message.importance["layer"].zero_()
        message.importance["new"] = torch.zeros(1)
        return answered

    peers = {name: Peer(spoil) for name in ("a", "b")}
    link = EmbeddedLink("north", peers, journal, "device")
    replies = link.call(dict.fromkeys(peers, sent), ImportanceUpload, _LONG)
    assert sent.importance.keys() == {"layer"}
    assert torch.equal(sent.importance["layer"], torch.ones(3))
    # The second peer got its own copy, not what the first had made of it.
    first, second = (peer.received[0] for peer in peers.values())
    assert first is not sent
    assert first is not second
    for reply in replies.values():
        assert isinstance(reply, ImportanceUpload)
        reply.importance["layer"].zero_()
    assert torch.equal(answered.importance["layer"], torch.full((3,), 2.0))


def test_tensors_that_share_memory_can_be_sent(journal: Journal):
    whole = torch.arange(6.0).reshape(2, 3)
    views = {"row": whole[0], "same": whole[0], "turned": whole.T, "slice": whole[:, 1]}
    peer = steady()
    message = ImportanceUpdate(round=0, importance=views)
    EmbeddedLink("north", {"cam": peer}, journal, "device").call(
        {"cam": message}, RoundReport, _LONG
    )
    received = peer.received[0]
    assert isinstance(received, ImportanceUpdate)
    assert all(torch.equal(received.importance[name], view) for name, view in views.items())


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_late_peer_is_a_failure_and_the_others_are_kept(journal: Journal, late, at_once: int):
    peers = {"first": steady(1), "late": late, "third": steady(3), "fourth": steady(4)}
    link = EmbeddedLink("north", peers, journal, "device", at_once=at_once)
    # Long for the others, who need less than a millisecond; the late one never answers.
    replies = link.call(dict.fromkeys(peers, RoundStart(round=0)), RoundReport, 1.0)
    assert isinstance(replies["late"], Failure)
    assert "deadline" in replies["late"].reason
    assert [replies[name] for name in ("first", "third", "fourth")] == [
        report(1),
        report(3),
        report(4),
    ]


def test_late_answer_does_not_reach_a_later_call(journal: Journal):
    over, calls = threading.Event(), iter((98, 5))

    def answer(_: Message) -> Message:
        neurons = next(calls)
        if neurons == 98:
            assert over.wait(_LONG)
        return report(neurons)

    link = EmbeddedLink("north", {"cam": Peer(answer)}, journal, "device")
    request = {"cam": RoundStart(round=0)}
    assert isinstance(link.call(request, RoundReport, 0.05)["cam"], Failure)
    over.set()
    assert link.call(request, RoundReport, _LONG) == {"cam": report(5)}


@pytest.mark.parametrize(
    "error", [ProtocolError("the plan does not fit"), QuorumError("1 of 3 answered")]
)
def test_error_of_a_handler_is_a_failure_with_its_reason(journal: Journal, error: Exception):
    peers = {"bad": raises(error), "good": steady()}
    link = EmbeddedLink("north", peers, journal, "device")
    replies = link.call(dict.fromkeys(peers, ReportRequest()), RoundReport, _LONG)
    assert replies == {"bad": Failure(str(error)), "good": report()}


def test_message_that_its_own_sender_cannot_build_is_a_failure(journal: Journal):
    """A device whose training went to NaN has nothing to send; the others go on."""
    nan = {"layer": torch.tensor([float("nan")])}
    peers = {
        "bad": Peer(lambda _: ImportanceUpload(round=0, importance=nan)),
        "good": Peer(lambda _: ImportanceUpload(round=0, importance={})),
    }
    link = EmbeddedLink("north", peers, journal, "device")
    replies = link.call(dict.fromkeys(peers, RoundStart(round=0)), ImportanceUpload, _LONG)
    assert isinstance(replies["bad"], Failure)
    assert "not finite" in replies["bad"].reason
    assert isinstance(replies["good"], ImportanceUpload)


def test_invalid_reply_is_refused_on_arrival_and_counted(journal: Journal, events):
    nan = {"layer": torch.tensor([float("nan")])}
    forged = ImportanceUpload.model_construct(round=0, importance=nan)
    link = EmbeddedLink("north", {"bad": Peer(lambda _: forged)}, journal, "device")
    reply = link.call({"bad": RoundStart(round=0)}, ImportanceUpload, _LONG)["bad"]
    assert isinstance(reply, Failure)
    assert "not finite" in reply.reason
    assert [event["bytes"] for event in events()][1:] == [len(encode(forged))]


def test_reply_of_another_type_is_a_failure(journal: Journal):
    link = EmbeddedLink("north", {"bad": steady()}, journal, "device")
    reply = link.call({"bad": RoundStart(round=0)}, FeatureSample, _LONG)["bad"]
    assert reply == Failure("unexpected message of type 'RoundReport'")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(3)])
def test_bug_or_interruption_is_not_taken_for_a_peers_failure(
    journal: Journal, error: BaseException
):
    peers = {"good": steady(), "bad": raises(error)}
    link = EmbeddedLink("north", peers, journal, "device")
    with pytest.raises(type(error)):
        link.call(dict.fromkeys(peers, RoundStart(round=0)), RoundReport, _LONG)


def test_replies_come_in_the_order_of_the_requests(journal: Journal):
    names = ["delta", "alpha", "charlie", "bravo"]
    peers = {name: steady(i) for i, name in enumerate(names)}
    link = EmbeddedLink("north", dict(sorted(peers.items())), journal, "device")
    assert link.members() == sorted(names)
    replies = link.call(dict.fromkeys(names, RoundStart(round=0)), RoundReport, _LONG)
    assert list(replies.items()) == [(name, report(i)) for i, name in enumerate(names)]


def test_only_those_asked_are_called(journal: Journal):
    peers = {"a": steady(), "b": steady()}
    link = EmbeddedLink("north", peers, journal, "device")
    assert link.call({"b": RoundStart(round=0)}, RoundReport, _LONG).keys() == {"b"}
    assert link.call({}, RoundReport, _LONG) == {}
    assert [len(peer.received) for peer in peers.values()] == [0, 1]


@pytest.mark.parametrize(("at_once", "turns"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_what_peers_are_about_to_be_asked_is_told_before_they_are(
    journal: Journal, at_once: int, turns: list[int]
):
    told: list[int] = []
    peers = {f"p{i}": Peer(lambda _: report(len(told))) for i in range(5)}
    link = EmbeddedLink(
        "north", peers, journal, "device", lambda turn: told.append(len(turn)), at_once
    )
    replies = link.call(dict.fromkeys(peers, RoundStart(round=0)), RoundReport, _LONG)
    assert told == turns
    # Each peer answered after its own turn was told, and before the next was.
    answered = [turn for turn, size in enumerate(turns, start=1) for _ in range(size)]
    assert list(replies.values()) == [report(turn) for turn in answered]


# --- the journal beneath ----------------------------------------------------------------------


def test_cancelled_journal_stops_whoever_still_writes(journal: Journal, events):
    journal.message("a", "b", "X", 1, tier="device", direction="up")
    journal.cancel()
    with pytest.raises(KeyboardInterrupt):
        journal.message("a", "b", "X", 1, tier="device", direction="up")
    with pytest.raises(KeyboardInterrupt), journal.stage("a", "work", "device"):
        pytest.fail("a cancelled run begins no stage")
    assert len(events()) == 1


def test_stage_that_fails_is_not_recorded(journal: Journal, events):
    with pytest.raises(ValueError, match="broken"), journal.stage("a", "work", "device"):
        raise ValueError("broken")
    with journal.stage("a", "better work", "device"):
        pass
    assert [event["stage"] for event in events()] == ["better work"]


def test_line_cut_off_by_a_crash_does_not_swallow_the_next(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    Journal(path).message("a", "b", "First", 1, tier="device", direction="up")
    with path.open("a") as file:
        file.write('{"time": "2025-01-0')
    Journal(path).message("a", "b", "Third", 3, tier="device", direction="up")
    assert [event["type"] for event in event_records(path)] == ["First", "Third"]


def test_journal_is_shared_by_threads(journal: Journal, events):
    def write(number: int) -> None:
        for _ in range(50):
            journal.message("a", "b", "x" * 200, number, tier="device", direction="up")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["bytes"] for event in events()) == sorted([0, 1, 2, 3] * 50)


class _Watcher(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, int]] = []

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        self.seen.append((actor, name, done, total))


def test_observer_sees_the_beginning_the_parts_and_one_end(tmp_path: Path):
    watcher = _Watcher()
    journal = Journal(tmp_path / "events.jsonl", watcher)
    with journal.stage("cloud", "reference", "cloud") as progress:
        for done in range(1, 4):
            progress(done, 3)
    assert [(done, total) for _, _, done, total in watcher.seen] == [(0, 1), (1, 3), (2, 3), (3, 3)]
    assert {(actor, name) for actor, name, _, _ in watcher.seen} == {("cloud", "reference")}
