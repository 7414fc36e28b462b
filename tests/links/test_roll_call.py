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


def _roll_call(link: object, quorum: float = 1.0) -> RollCall:
    return RollCall("north", "devices", link, 1.0, quorum, "runs/a")  # type: ignore[arg-type]


def test_reason_of_a_failure_is_one_short_line() -> None:
    calls = _roll_call(_Silent(1, _EVIL))
    calls.gather({"cam-0": ProfileRequest()}, RoundReport)
    reason = calls.lost["cam-0"]
    assert reason.isprintable()
    assert len(reason) <= 1000
    assert reason.startswith("gone?[2J? cloud: all is well ??")


def test_reason_that_quotes_a_reply_is_one_short_line() -> None:
    def check(name: str, reply: RoundReport) -> None:
        raise ProtocolError(_EVIL)

    calls = _roll_call(_Answering(1, ""))
    assert calls.gather({"cam-0": ProfileRequest()}, RoundReport, check) == {}
    assert calls.lost["cam-0"].isprintable()


def test_thousands_of_lost_peers_are_told_in_one_short_line() -> None:
    link = _Silent(5000, _EVIL)
    calls = _roll_call(link, 0.5)
    with pytest.raises(QuorumError, match=r"0 of 5000 devices answered, 2500 .*and 4990 more") as e:
        calls.call(dict.fromkeys(link.names, ProfileRequest()), RoundReport)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 11_000
