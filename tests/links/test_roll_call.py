"""Peers that are lost: their reasons are shown, and come from them."""

from __future__ import annotations

import pytest

from acme_fleet.errors import ProtocolError, QuorumError
from acme_fleet.links.base import Failure
from acme_fleet.links.roll_call import RollCall
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import ProfileRequest, RoundReport
from answering import report

_EVIL = "gone\x1b[2J\x07\r\ncloud: all is well \u202e\ud800" + "x" * 50_000


class _Silent:
    """A link to peers that all fail, with one reason."""

    def __init__(self, count: int, reason: str) -> None:
        self.names = [f"cam-{n}" for n in range(count)]
        self._answer = Failure(reason)

    def members(self) -> list[str]:
        return self.names

    def call(self, requests: object, reply: object, timeout_s: float) -> dict[str, object]:
        return dict.fromkeys(self.names, self._answer)


class _Answering(_Silent):
    def call(self, requests: object, reply: object, timeout_s: float) -> dict[str, Message]:  # type: ignore[override]
        return dict.fromkeys(self.names, report())


def _roll_call(link: object, quorum: float = 1.0, told: list[str] | None = None) -> RollCall:
    names: list[str] = [] if told is None else told

    def tell(name: str, reason: str) -> None:
        names.append(name)

    return RollCall("north", "devices", link, 1.0, quorum, "runs/a", tell)  # type: ignore[arg-type]


def test_reason_of_a_failure_is_one_short_line() -> None:
    told: list[str] = []
    calls = _roll_call(_Silent(1, _EVIL), told=told)
    calls.gather({"cam-0": ProfileRequest()}, RoundReport)
    assert told == ["cam-0"]
    reason = calls.lost["cam-0"]
    assert reason.isprintable()
    assert len(reason) <= 1000
    assert reason.startswith("gone?[2J? cloud: all is well ??")


def test_reason_that_quotes_a_reply_is_one_short_line() -> None:
    def check(name: str, reply: RoundReport) -> None:
        raise ProtocolError(_EVIL)

    told: list[str] = []
    calls = _roll_call(_Answering(1, ""), told=told)
    assert calls.gather({"cam-0": ProfileRequest()}, RoundReport, check) == {}
    assert told == ["cam-0"]
    assert calls.lost["cam-0"].isprintable()


def test_thousands_of_lost_peers_are_told_in_one_short_line() -> None:
    link = _Silent(5000, _EVIL)
    calls = _roll_call(link, 0.5)
    with pytest.raises(QuorumError, match=r"0 of 5000 devices answered, 2500 .*and 4990 more") as e:
        calls.call(dict.fromkeys(link.names, ProfileRequest()), RoundReport)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 11_000
